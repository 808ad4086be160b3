"""The recurrent mixers' steps for a GPU that has torch alone: kernels in Triton over the rows of a state pool.

It imports triton at its top, so only what has made sure of triton may import it. Nothing here waits for the GPU or
reads a tensor on the host, so that a decode step can be captured in a CUDA graph. The kernels are launched on the
current CUDA device, which must be the tensors' own.

All but `selective_scan` replace a pool's rows in place, so none of them is tuned by trial, which would take a step
several times. Between loading a state and storing it all threads of a program meet: more than one of them may hold the
same entry. A state is read and written once and nothing else costs: a program holds about STATE_ENTRIES of them, few
enough that there are programs for all of a GPU at one sequence, and 16 bytes in each of a thread's loads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
STATE_ENTRIES = 4096
NUM_WARPS = 4
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _as_kept(states, pool_ptr):
    """float32 as a pool holds it: the nearest, and for what is too large for float16 its largest number."""
    if pool_ptr.dtype.element_ty == tl.float16:
        states = tl.minimum(tl.maximum(states, -65504.0), 65504.0)
    return states.to(pool_ptr.dtype.element_ty)


@triton.jit
def _conv_kernel(
    y_ptr, x_ptr, pool_ptr, slots_ptr, weight_ptr, bias_ptr, x_stride, pool_stride, channels,
    KERNEL: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (block of channels, sequence)."""
    channel, row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    there = channel < channels
    slot = tl.load(slots_ptr + row).to(tl.int64)
    y = tl.zeros([BLOCK], dtype=tl.float32)
    if slot >= 0:
        x = tl.load(x_ptr + row * x_stride + channel, mask=there, other=0.0).to(tl.float32)
        tap = tl.arange(0, TAPS)
        window = there[:, None] & (tap < KERNEL - 1)[None, :]
        states_ptr = pool_ptr + slot * pool_stride + channel[:, None] * (KERNEL - 1) + tap[None, :]
        weights_ptr = weight_ptr + channel * KERNEL
        states = tl.load(states_ptr, mask=window, other=0.0)
        weights = tl.load(weights_ptr[:, None] + tap[None, :], mask=window, other=0.0).to(tl.float32)
        last = tl.load(weights_ptr + (KERNEL - 1), mask=there, other=0.0).to(tl.float32)
        y = tl.sum(states * weights, axis=1) + x * last
        if bias_ptr is not None:
            y += tl.load(bias_ptr + channel, mask=there, other=0.0).to(tl.float32)
        y = y / (1 + tl.exp2(y * -LOG2E))
        tl.debug_barrier()
        tl.store(states_ptr - 1, states, mask=window & (tap > 0)[None, :])
        tl.store(pool_ptr + slot * pool_stride + channel * (KERNEL - 1) + (KERNEL - 2), x, mask=there)
    tl.store(y_ptr + row * channels + channel, y.to(y_ptr.dtype.element_ty), mask=there)


@triton.jit
def _ssd_kernel(
    y_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, pool_ptr, slots_ptr,
    x_stride, x_head_stride, dt_stride, B_stride, B_group_stride, C_stride, C_group_stride, pool_stride,
    HEADS_PER_GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, STATE_SIZE: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (block of a head's dimensions, head, sequence)."""
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    dim, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    y = tl.zeros([ROWS], dtype=tl.float32)
    if slot >= 0:
        group = head // HEADS_PER_GROUP
        there = (dim < HEAD_DIM)[:, None] & (n < STATE_SIZE)[None, :]
        states_ptr = (
            pool_ptr + slot * pool_stride + head * (HEAD_DIM * STATE_SIZE) + dim[:, None] * STATE_SIZE + n[None, :]
        )
        states = tl.load(states_ptr, mask=there, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr + row * dt_stride + head).to(tl.float32)
        A = tl.load(A_ptr + head).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + head * x_head_stride + dim, mask=dim < HEAD_DIM, other=0.0)
        B = tl.load(B_ptr + row * B_stride + group * B_group_stride + n, mask=n < STATE_SIZE, other=0.0)
        C = tl.load(C_ptr + row * C_stride + group * C_group_stride + n, mask=n < STATE_SIZE, other=0.0)
        added = (x.to(tl.float32) * dt)[:, None] * B.to(tl.float32)[None, :]
        states = states * tl.exp2(dt * A * LOG2E) + added
        y = tl.sum(states * C.to(tl.float32)[None, :], axis=1)
        tl.debug_barrier()
        tl.store(states_ptr, _as_kept(states, pool_ptr), mask=there)
    tl.store(y_ptr + (row * tl.num_programs(1) + head) * HEAD_DIM + dim, y, mask=dim < HEAD_DIM)


@triton.jit
def _selective_kernel(
    y_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, pool_ptr, slots_ptr,
    x_stride, dt_stride, B_stride, C_stride, pool_stride, channels,
    STATE_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (block of channels, sequence)."""
    row = tl.program_id(1).to(tl.int64)
    channel, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real = channel < channels
    slot = tl.load(slots_ptr + row).to(tl.int64)
    y = tl.zeros([ROWS], dtype=tl.float32)
    if slot >= 0:
        there = real[:, None] & (n < STATE_SIZE)[None, :]
        offsets = channel[:, None] * STATE_SIZE + n[None, :]
        states = tl.load(pool_ptr + slot * pool_stride + offsets, mask=there, other=0.0).to(tl.float32)
        A = tl.load(A_ptr + offsets, mask=there, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + row * x_stride + channel, mask=real, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr + row * dt_stride + channel, mask=real, other=0.0).to(tl.float32)
        B = tl.load(B_ptr + row * B_stride + n, mask=n < STATE_SIZE, other=0.0).to(tl.float32)
        C = tl.load(C_ptr + row * C_stride + n, mask=n < STATE_SIZE, other=0.0).to(tl.float32)
        states = states * tl.exp2(dt[:, None] * A * LOG2E) + (dt * x)[:, None] * B[None, :]
        y = tl.sum(states * C[None, :], axis=1)
        tl.debug_barrier()
        tl.store(pool_ptr + slot * pool_stride + offsets, _as_kept(states, pool_ptr), mask=there)
    tl.store(y_ptr + row * channels + channel, y, mask=real)


@triton.jit
def _delta_kernel(
    y_ptr, q_ptr, k_ptr, v_ptr, decay_ptr, beta_ptr, pool_ptr, slots_ptr,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride, decay_stride, beta_stride, pool_stride,
    HEADS_PER_KEY: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (block of a head's value dimensions, value head, sequence): the columns of a memory do not meet."""
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, dim = tl.arange(0, ROWS), tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    y = tl.zeros([COLUMNS], dtype=tl.float32)
    if slot >= 0:
        key_head = head // HEADS_PER_KEY
        there = (p < KEY_DIM)[:, None] & (dim < VALUE_DIM)[None, :]
        states_ptr = (
            pool_ptr + slot * pool_stride + head * (KEY_DIM * VALUE_DIM) + p[:, None] * VALUE_DIM + dim[None, :]
        )
        states = tl.load(states_ptr, mask=there, other=0.0).to(tl.float32)
        q = tl.load(q_ptr + row * q_stride + key_head * q_head_stride + p, mask=p < KEY_DIM, other=0.0)
        k = tl.load(k_ptr + row * k_stride + key_head * k_head_stride + p, mask=p < KEY_DIM, other=0.0)
        v = tl.load(v_ptr + row * v_stride + head * v_head_stride + dim, mask=dim < VALUE_DIM, other=0.0)
        log_decay = tl.load(decay_ptr + row * decay_stride + head).to(tl.float32)
        beta = tl.load(beta_ptr + row * beta_stride + head).to(tl.float32)
        keys = k.to(tl.float32)[:, None]
        states = states * tl.exp2(log_decay * LOG2E)
        new = beta * (v.to(tl.float32) - tl.sum(keys * states, axis=0))
        states += keys * new[None, :]
        y = tl.sum(q.to(tl.float32)[:, None] * states, axis=0)
        tl.debug_barrier()
        tl.store(states_ptr, _as_kept(states, pool_ptr), mask=there)
    tl.store(y_ptr + (row * tl.num_programs(1) + head) * VALUE_DIM + dim, y, mask=dim < VALUE_DIM)


@triton.jit(do_not_specialize=["length"])
def _selective_scan_kernel(
    y_ptr, after_ptr, x_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, state_ptr,
    x_stride, x_token_stride, dt_stride, dt_token_stride, B_stride, B_token_stride, C_stride, C_token_stride, length,
    channels, STATE_SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Program (block of channels, sequence): its states stay in registers from the first token to the last."""
    row = tl.program_id(1).to(tl.int64)
    channel, n = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real, there = channel < channels, (channel < channels)[:, None] & (n < STATE_SIZE)[None, :]
    offsets = channel[:, None] * STATE_SIZE + n[None, :]
    states = tl.load(state_ptr + row * channels * STATE_SIZE + offsets, mask=there, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + offsets, mask=there, other=0.0).to(tl.float32) * LOG2E
    x_ptr += row * x_stride + channel
    dt_ptr += row * dt_stride + channel
    B_ptr += row * B_stride + n
    C_ptr += row * C_stride + n
    y_ptr += row * length * channels + channel
    # The loads of later tokens are begun before: they alone would take longer than a token's arithmetic.
    for _ in tl.range(0, length, num_stages=STAGES):
        x = tl.load(x_ptr, mask=real, other=0.0).to(tl.float32)
        dt = tl.load(dt_ptr, mask=real, other=0.0).to(tl.float32)
        B = tl.load(B_ptr, mask=n < STATE_SIZE, other=0.0).to(tl.float32)
        C = tl.load(C_ptr, mask=n < STATE_SIZE, other=0.0).to(tl.float32)
        states = states * tl.exp2(dt[:, None] * A) + (dt * x)[:, None] * B[None, :]
        tl.store(y_ptr, tl.sum(states * C[None, :], axis=1), mask=real)
        x_ptr += x_token_stride
        dt_ptr += dt_token_stride
        B_ptr += B_token_stride
        C_ptr += C_token_stride
        y_ptr += channels
    tl.store(after_ptr + row * channels * STATE_SIZE + offsets, states, mask=there)


def _check(
    pool: Tensor, slots: Tensor, shape: tuple[int, ...], batch: int, dtypes: tuple[torch.dtype, ...] = STATE_DTYPES
) -> None:
    if pool.dtype not in dtypes or pool.shape[1:] != shape or not pool[0].is_contiguous():
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"the pool must hold contiguous {wanted} rows {shape}, not {pool.dtype} {tuple(pool.shape)}")
    if slots.shape != (batch,):
        raise ValueError(f"{batch} sequences, but slots {tuple(slots.shape)}")


def _dense(*tensors: Tensor) -> list[Tensor]:
    """The same, copied where the entries of the last dimension do not lie next to each other."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]


def conv_step(x: Tensor, pool: Tensor, slots: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of the causal convolution for one token of each sequence; x joins the inputs that the pool remembers.

    Args:
        x: (b, channels). pool: (num_slots, channels, kernel - 1) float32, updated in place at `slots` only.
        slots: (b,) int64, distinct; -1 = padding row, skipped.
        weight: (channels, 1, kernel), kernel >= 2. bias: (channels,) or None.
    Returns:
        (b, channels) in x's dtype, summed in float32. Padding rows are zero.
    Raises:
        ValueError: shapes disagree, or the pool is not float32.
    """
    (batch, channels), kernel = x.shape, weight.shape[-1]
    _check(pool, slots, (channels, kernel - 1), batch, (torch.float32,))
    [x] = _dense(x)
    y = torch.empty((batch, channels), dtype=x.dtype, device=x.device)
    block = 32 * NUM_WARPS
    _conv_kernel[(triton.cdiv(channels, block), batch)](
        y, x, pool, slots, weight.contiguous(), bias, x.stride(0), pool.stride(0), channels,
        KERNEL=kernel, TAPS=triton.next_power_of_2(kernel - 1), BLOCK=block, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """One token of the Mamba-2 recurrence for each of b sequences: h <- exp(dt*A)*h + dt*B*x ; y = C.h

    Args:
        x: (b, h, p). dt: (b, h). A: (h,). B, C: (b, g, n), of any dtypes.
        pool: (num_slots, h, p, n) float32, bfloat16 or float16, updated in place at `slots` only.
        slots: (b,) int64, distinct; -1 = padding row, skipped.
    Returns:
        (b, h, p) float32, without the skip term D*x. Padding rows are zero.
    Raises:
        ValueError: shapes disagree, or the pool's dtype is another.
    Source: arXiv:2405.21060.
    """
    (batch, heads, head_dim), (_, groups, state_size) = x.shape, B.shape
    _check(pool, slots, (heads, head_dim, state_size), batch)
    x, dt, A, B, C = _dense(x, dt, A, B, C)
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    columns = triton.next_power_of_2(state_size)
    rows = min(triton.next_power_of_2(head_dim), max(1, STATE_ENTRIES // columns))
    _ssd_kernel[(triton.cdiv(head_dim, rows), heads, batch)](
        y, x, dt, A, B, C, pool, slots, x.stride(0), x.stride(1), dt.stride(0), B.stride(0), B.stride(1), C.stride(0),
        C.stride(1), pool.stride(0), HEADS_PER_GROUP=heads // groups, HEAD_DIM=head_dim, STATE_SIZE=state_size,
        ROWS=rows, COLUMNS=columns, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y


def selective_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, pool: Tensor, slots: Tensor) -> Tensor:
    """One token of the Mamba-1 recurrence for each of b sequences: h <- exp(dt*A)*h + dt*B*x ; y = C.h

    Args:
        x, dt: (b, d). A: (d, n). B, C: (b, n), of any dtypes.
        pool: (num_slots, d, n) float32, bfloat16 or float16, updated in place at `slots` only.
        slots: (b,) int64, distinct; -1 = padding row, skipped.
    Returns:
        (b, d) float32, without the skip term D*x. Padding rows are zero.
    Raises:
        ValueError: shapes disagree, or the pool's dtype is another.
    Source: arXiv:2312.00752, section 3.
    """
    (batch, channels), state_size = x.shape, A.shape[1]
    _check(pool, slots, (channels, state_size), batch)
    x, dt, B, C = _dense(x, dt, B, C)
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    columns = triton.next_power_of_2(state_size)
    # Half as many as in the others, for A is read as well and there are fewer of them.
    rows = max(1, STATE_ENTRIES // 2 // columns)
    _selective_kernel[(triton.cdiv(channels, rows), batch)](
        y, x, dt, A.contiguous(), B, C, pool, slots, x.stride(0), dt.stride(0), B.stride(0), C.stride(0),
        pool.stride(0), channels, STATE_SIZE=state_size, ROWS=rows, COLUMNS=columns, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, *, pool: Tensor, slots: Tensor
) -> Tensor:
    """One token of the gated delta rule for each of b sequences.

    S <- exp(log_decay)*S ; S <- S + k (beta*(v - k.S)) ; y = q.S

    Args:
        q, k: (b, g, p). v: (b, h, n). log_decay, beta: (b, h), of any dtypes.
        pool: (num_slots, h, p, n) float32, bfloat16 or float16, updated in place at `slots` only.
        slots: (b,) int64, distinct; -1 = padding row, skipped.
    Returns:
        (b, h, n) float32. Padding rows are zero.
    Raises:
        ValueError: shapes disagree, or the pool's dtype is another.
    Source: arXiv:2412.06464.
    """
    (batch, key_heads, key_dim), (_, heads, value_dim) = k.shape, v.shape
    _check(pool, slots, (heads, key_dim, value_dim), batch)
    q, k, v, log_decay, beta = _dense(q, k, v, log_decay, beta)
    y = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    rows = triton.next_power_of_2(key_dim)
    columns = min(triton.next_power_of_2(value_dim), max(4, STATE_ENTRIES // rows))
    _delta_kernel[(triton.cdiv(value_dim, columns), heads, batch)](
        y, q, k, v, log_decay, beta, pool, slots, q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0),
        v.stride(1), log_decay.stride(0), beta.stride(0), pool.stride(0), HEADS_PER_KEY=heads // key_heads,
        KEY_DIM=key_dim, VALUE_DIM=value_dim, ROWS=rows, COLUMNS=columns, num_warps=NUM_WARPS,
    )  # fmt: skip
    return y


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run the Mamba-1 recurrence over whole runs of tokens, one after the other: h <- exp(dt*A)*h + dt*B*x ; y = C.h

    Args:
        x, dt: (b, l, d). A: (d, n). B, C: (b, l, n), of any dtypes. state: (b, d, n), before the first token.
    Returns:
        y: (b, l, d) float32, without the skip term D*x; the state after the last token (b, d, n) float32.
    Raises:
        ValueError: shapes disagree.
    Source: arXiv:2312.00752, section 3.3.2.
    """
    (batch, length, channels), state_size = x.shape, A.shape[1]
    if state.shape != (batch, channels, state_size) or B.shape != (batch, length, state_size) or C.shape != B.shape:
        raise ValueError(f"x {tuple(x.shape)} does not fit to B {tuple(B.shape)} and the state {tuple(state.shape)}")
    # What a convolution gives lies channel by channel: read so, every token would touch a cache line per channel. And
    # loads of two bytes are not begun ahead of time, as those of four are.
    x, dt, B, C = _dense(*(tensor.float() for tensor in (x, dt, B, C)))
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    after = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    columns = triton.next_power_of_2(state_size)
    # One warp with a state of 512 entries: no thread waits for another warp, and there are many programs. A token's
    # arithmetic takes some 100 ns and its loads some 800.
    rows = max(1, 512 // columns)
    _selective_scan_kernel[(triton.cdiv(channels, rows), batch)](
        y, after, x, dt, A.contiguous(), B, C, state.contiguous(), x.stride(0), x.stride(1), dt.stride(0),
        dt.stride(1), B.stride(0), B.stride(1), C.stride(0), C.stride(1), length, channels,
        STATE_SIZE=state_size, ROWS=rows, COLUMNS=columns, STAGES=8, num_warps=1,
    )  # fmt: skip
    return y, after
