//! The door to the driver: launches kernels and matrix products on tensors, and makes tensors for them to write.
//!
//! All work goes to the one stream of the tensors' device, in the order of the calls. So memory that is freed after a call is
//! not used again before the call has run, and nothing here waits.

#![allow(
    unsafe_code,
    reason = "kernels and cuBLAS take pointers; the operators beside this file check shapes first"
)]

use std::sync::OnceLock;

use candle_core::backend::BackendStorage as _;
use candle_core::{DType, Device, Error, Result, Shape, Storage, Tensor};
use cudarc::cublas::result::gemm_strided_batched_ex;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use cudarc::driver::{DevicePtr as _, LaunchConfig, PushKernelArg as _};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

/// The kernels, one program.
const SOURCES: [&str; 6] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/norm.cu"),
    include_str!("kernels/elementwise.cu"),
    include_str!("kernels/attention.cu"),
    include_str!("kernels/loss.cu"),
    include_str!("kernels/adamw.cu"),
];

/// The oldest architecture that CUDA 13 compiles for. The driver translates for the GPU that is there.
const ARCHITECTURE: &str = "--gpu-architecture=compute_75";

/// Threads of a warp and warps of a block; the kernels count on the first.
const BLOCK: (u32, u32, u32) = (32, 4, 1);

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    Pointer(u64),
    Int(i32),
    Float(f32),
}

/// How many threads a kernel wants.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    /// A warp a row.
    Rows(usize),
    /// A thread a value.
    Values(usize),
}

/// The program as the driver takes it. Needs NVRTC, but no GPU.
///
/// # Errors
/// The compiler's log.
pub(crate) fn program() -> Result<&'static str> {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program);
    }
    let options = CompileOptions { options: vec![ARCHITECTURE.into()], ..CompileOptions::default() };
    let compiled = compile_ptx_with_opts(SOURCES.concat(), options).map_err(Error::wrap)?;
    Ok(PROGRAM.get_or_init(|| compiled.to_src()))
}

/// Runs the kernel `name` once.
///
/// # Errors
/// What the driver refuses: as a rule it is out of memory.
pub(crate) fn launch(device: &Device, name: &str, work: Work, args: &[Arg]) -> Result<()> {
    let threads = (BLOCK.0 * BLOCK.1) as usize;
    let blocks = match work {
        Work::Rows(rows) => rows.div_ceil(BLOCK.1 as usize),
        Work::Values(count) => count.div_ceil(threads),
    };
    if blocks == 0 {
        return Ok(());
    }
    let function = device.as_cuda_device()?.get_or_load_custom_func(name, "rankpatch", program()?)?;
    let grid_dim = (u32::try_from(blocks).map_err(Error::wrap)?, 1, 1);
    let config = LaunchConfig { grid_dim, block_dim: BLOCK, shared_mem_bytes: 0 };
    let mut builder = function.builder();
    for arg in args {
        match arg {
            Arg::Pointer(pointer) => builder.arg(pointer),
            Arg::Int(number) => builder.arg(number),
            Arg::Float(number) => builder.arg(number),
        };
    }
    // SAFETY: the callers in `cuda` and `optim` give each kernel the arguments of its signature, and pointers from
    // `pointer` to as many values as the kernel's numbers say; kernels check their index against those.
    unsafe { builder.launch(config) }.map_err(Error::wrap)?;
    Ok(())
}

/// Where a contiguous tensor's values begin.
///
/// # Errors
/// If it is not contiguous, not on a GPU, or of a type that no kernel takes.
pub(crate) fn pointer(tensor: &Tensor) -> Result<Arg> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(Error::Msg(format!("a tensor is on {:?}, expected a GPU", tensor.device().location())));
    };
    let (start, _) = layout.contiguous_offsets().ok_or_else(|| {
        Error::Msg(format!("a tensor of shape {:?} is expected to be contiguous", tensor.shape()))
    })?;
    let stream = storage.device().cuda_stream();
    let first = match tensor.dtype() {
        DType::F32 => storage.as_cuda_slice::<f32>()?.device_ptr(&stream).0,
        DType::BF16 => storage.as_cuda_slice::<half::bf16>()?.device_ptr(&stream).0,
        DType::U32 => storage.as_cuda_slice::<u32>()?.device_ptr(&stream).0,
        DType::I64 => storage.as_cuda_slice::<i64>()?.device_ptr(&stream).0,
        other => {
            return Err(Error::Msg(format!("a tensor has type {other:?}, expected one that kernels take")));
        }
    };
    Ok(Arg::Pointer(first + (start * tensor.dtype().size_in_bytes()) as u64))
}

/// A pointer that stands for nothing.
pub(crate) const NULL: Arg = Arg::Pointer(0);

/// A number of rows, columns or values.
///
/// # Errors
/// If it is above 2^31 - 1, which kernels do not count to.
pub(crate) fn int(number: usize) -> Result<Arg> {
    i32::try_from(number).map(Arg::Int).map_err(Error::wrap)
}

/// A tensor with unspecified values.
///
/// # Errors
/// If the device has no memory left.
pub(crate) fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    // SAFETY: every bit pattern is a value of these types, and each caller has a kernel or product write all of it.
    unsafe { Tensor::empty(shape, dtype, device) }
}

/// One side of a product: a contiguous stack of row-major matrices, or of their transposes.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Plain(&'a Tensor),
    Transposed(&'a Tensor),
}

/// What a product computes.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Matrices of each stack.
    pub(crate) batch: usize,
    /// Rows of the result.
    pub(crate) rows: usize,
    /// Columns of the result.
    pub(crate) cols: usize,
    /// Length of the sums.
    pub(crate) inner: usize,
    /// Factor of the product.
    pub(crate) factor: f32,
    /// Adds to what is there.
    pub(crate) accumulate: bool,
}

/// `c = factor * a b` (or `c +=`) for each matrix of a stack, by cuBLAS with sums in f32.
///
/// `a` [batch, rows, inner] and `b` [batch, inner, cols] have one type; `c` [batch, rows, cols] has that or f32.
///
/// # Errors
/// If sizes or types do not fit, or cuBLAS refuses.
pub(crate) fn multiply(c: &Tensor, a: Side<'_>, b: Side<'_>, product: &Product) -> Result<()> {
    let &Product { batch, rows, cols, inner, factor, accumulate } = product;
    let (a, turn_a) = match a {
        Side::Plain(a) => (a, false),
        Side::Transposed(a) => (a, true),
    };
    let (b, turn_b) = match b {
        Side::Plain(b) => (b, false),
        Side::Transposed(b) => (b, true),
    };
    let counts = [(c, rows * cols), (a, rows * inner), (b, inner * cols)];
    if counts.iter().any(|(tensor, count)| tensor.elem_count() != batch * count) || a.dtype() != b.dtype() {
        let shapes = [a, b, c].map(|tensor| (tensor.shape().clone(), tensor.dtype()));
        return Err(Error::Msg(format!(
            "a product of {batch} x [{rows}, {inner}] x [{inner}, {cols}]: {shapes:?}"
        )));
    }
    let number = |number: usize| i32::try_from(number).map_err(Error::wrap);
    let [Arg::Pointer(a_at), Arg::Pointer(b_at), Arg::Pointer(c_at)] =
        [pointer(a)?, pointer(b)?, pointer(c)?]
    else {
        unreachable!("`pointer` gives pointers")
    };
    let turned = |turn| if turn { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
    let kind = |tensor: &Tensor| match tensor.dtype() {
        DType::BF16 => cudaDataType::CUDA_R_16BF,
        _ => cudaDataType::CUDA_R_32F,
    };
    let add = if accumulate { 1.0f32 } else { 0.0 };
    let device = c.device().as_cuda_device()?;
    device.cuda_stream().context().bind_to_thread().map_err(Error::wrap)?;
    let blas = device.cublas_handle();
    // cuBLAS counts by columns: what it sees are the transposes, so the sides change places.
    // SAFETY: the sizes were checked against the tensors above, which live until after the call; the factors are f32 on
    // the host, as the handle's pointer mode and the compute type say.
    unsafe {
        gemm_strided_batched_ex(
            *blas.handle(),
            turned(turn_b),
            turned(turn_a),
            number(cols)?,
            number(rows)?,
            number(inner)?,
            (&raw const factor).cast(),
            b_at as *const std::ffi::c_void,
            kind(b),
            number(if turn_b { inner } else { cols })?,
            (inner * cols) as i64,
            a_at as *const std::ffi::c_void,
            kind(a),
            number(if turn_a { rows } else { inner })?,
            (rows * inner) as i64,
            (&raw const add).cast(),
            c_at as *mut std::ffi::c_void,
            kind(c),
            number(cols)?,
            (rows * cols) as i64,
            number(batch)?,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(Error::wrap)
}
