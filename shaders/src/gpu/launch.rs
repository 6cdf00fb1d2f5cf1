//! The unsafe room of the GPU device: kernel arguments made of a buffer and a
//! length, and the one stream on which everything is ordered.

#![allow(unsafe_code)]

use cubecl::MemoryAllocationMode;
use cubecl::client::Client;
use cubecl::prelude::{BufferArg, CubeCount, TensorBinding};
use cubecl::server::Handle;
use cubecl_environment::stream::StreamId;

/// A buffer as a kernel's argument: `length` elements of four bytes.
///
/// The kernels are launched with bounds checks, so a kernel's own mistake reads
/// or writes nothing beyond the length.
pub(crate) fn argument(handle: Handle, length: usize) -> BufferArg {
    let length = length.min((handle.size_in_used() / 4) as usize);
    // SAFETY: the length is within the handle's bytes, by the line above.
    unsafe { BufferArg::from_raw_parts(handle, length) }
}

/// A matrix `[rows, columns]` for cubek's products; `strides` in elements.
pub(crate) fn matrix(handle: Handle, shape: [usize; 2], strides: [usize; 2]) -> TensorBinding {
    TensorBinding {
        handle: handle.binding(),
        strides: strides.as_slice().into(),
        shape: shape.as_slice().into(),
        tiling: cubecl::zspace::Tiling::UNTILED,
    }
}

/// Binds a client to one stream, so that calls from several threads are
/// carried out in the order in which they were made.
pub(super) fn on_one_stream(client: &mut Client) {
    // SAFETY: the stream is chosen once, before the client is first used, and
    // every clone of the client keeps it.
    unsafe { client.set_stream(StreamId { value: 1 }) }
}

/// Runs `work` while what the client allocates is an allocation of the driver's
/// of its own, exactly as large as asked for, and goes back once it is free.
/// Otherwise the runtime cuts allocations from pages of its own choice.
pub(super) fn own_allocation<T>(client: &Client, work: impl FnOnce() -> T) -> T {
    // SAFETY: the mode is a stack on the client's one stream, and each mode that is
    // put there is taken away again. What another thread allocates meanwhile gets
    // an allocation of its own too, and is right.
    unsafe { client.allocation_mode(MemoryAllocationMode::Dedicated) }
    let done = work();
    // SAFETY: as above; this takes the mode away.
    unsafe { client.allocation_mode(MemoryAllocationMode::Auto) }
    done
}

/// Units of a cube in kernels that take one element a unit.
pub(crate) const UNITS: u32 = 256;

/// At least `cubes` cubes; devices allow 65,535 in one dimension.
pub(crate) fn grid(cubes: usize) -> CubeCount {
    const MOST: usize = 65_535;
    let cubes = cubes.max(1);
    if cubes <= MOST {
        return CubeCount::Static(cubes as u32, 1, 1);
    }
    let rows = cubes.div_ceil(MOST);
    CubeCount::Static(cubes.div_ceil(rows) as u32, rows as u32, 1)
}
