"""Every operation in plain torch: on every device, and the reference for the others."""

from models.kernels.attention_torch import attend, write_kv
from models.kernels.convolution_torch import convolve, convolve_step
from models.kernels.delta_rule_torch import delta_scan, delta_step
from models.kernels.interface import AttentionKernels, ConvolutionKernels, RecurrenceKernels
from models.kernels.selective_scan_torch import selective_scan, selective_step
from models.kernels.ssd_torch import ssd_scan, ssd_step

NAME = "torch"

ATTENTION = AttentionKernels(NAME, write_kv, attend)
CONVOLUTION = ConvolutionKernels(NAME, convolve, convolve_step)
SELECTIVE_SCAN = RecurrenceKernels(NAME, selective_scan, selective_step)
SSD = RecurrenceKernels(NAME, ssd_scan, ssd_step)
DELTA_RULE = RecurrenceKernels(NAME, delta_scan, delta_step)
