"""Every operation in plain torch: on every device, and the reference for the others."""

from models.kernels.attention_torch import attend, write_kv
from models.kernels.convolution_torch import convolve, convolve_step
from models.kernels.delta_rule_torch import delta_scan, delta_step
from models.kernels.interface import AttentionKernels, RecurrentKernels
from models.kernels.selective_scan_torch import selective_scan, selective_step
from models.kernels.ssd_torch import ssd_scan, ssd_step

ATTENTION = AttentionKernels(write_kv, attend)
SELECTIVE_SCAN = RecurrentKernels(convolve, convolve_step, selective_scan, selective_step)
SSD = RecurrentKernels(convolve, convolve_step, ssd_scan, ssd_step)
DELTA_RULE = RecurrentKernels(convolve, convolve_step, delta_scan, delta_step)
