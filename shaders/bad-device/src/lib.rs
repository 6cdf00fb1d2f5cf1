//! A Vulkan layer for tests: it lies between the loader and a real driver, lets
//! everything through, and makes a good device a bad one where the environment
//! says so. The program under test knows nothing of it.
//!
//! - `BAD_DEVICE_LOST_AT`: the number of the submission, from 1, from which on the
//!   device is lost, as it is when a card falls off its bus or its driver is reset:
//!   that call and all later ones answer `VK_ERROR_DEVICE_LOST`.
//! - `BAD_DEVICE_HANGS_AT`: the number of the submission that never returns.
//! - `BAD_DEVICE_COUNT`: a file that the number of submissions is written to.
//! - `BAD_DEVICE_MEMORY`: bytes of every memory heap, in place of the device's own.
//! - `BAD_DEVICE_FULL_AT`: bytes that the process may allocate in all, freed or not;
//!   then memory is out, as it is where other programs hold it.
//! - `BAD_DEVICE_UNITS`: units that a compute kernel's workgroup may have, at most.
//!
//! The loader finds the layer by a manifest in the folder of `VK_LAYER_PATH`, and
//! loads it where `VK_INSTANCE_LAYERS` names it; [`NAME`] is the name.
//!
//! # Source
//! The loader's interface to layers, version 2:
//! <https://github.com/KhronosGroup/Vulkan-Loader/blob/main/docs/LoaderLayerInterface.md>

use std::ffi::{CStr, c_char, c_void};
use std::mem::transmute;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

/// An instance, a device or a queue.
type Handle = *mut c_void;
type Function = *mut c_void;
type GetProcAddr = unsafe extern "system" fn(Handle, *const c_char) -> Function;

const ERROR_OUT_OF_DEVICE_MEMORY: i32 = -2;
const ERROR_INITIALIZATION_FAILED: i32 = -3;
const ERROR_DEVICE_LOST: i32 = -4;

/// The layer's name, for its manifest.
pub const NAME: &str = "VK_LAYER_FINETUNED_bad_device";

/// What the environment asks for.
struct Wish {
    lost_at: Option<u64>,
    hangs_at: Option<u64>,
    count: Option<PathBuf>,
    memory: Option<u64>,
    full_at: Option<u64>,
    units: Option<u64>,
}

static SUBMISSIONS: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicBool = AtomicBool::new(false);

fn wish() -> &'static Wish {
    static WISH: OnceLock<Wish> = OnceLock::new();
    WISH.get_or_init(|| {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
        Wish {
            lost_at: number("BAD_DEVICE_LOST_AT"),
            hangs_at: number("BAD_DEVICE_HANGS_AT"),
            count: std::env::var_os("BAD_DEVICE_COUNT").map(PathBuf::from),
            memory: number("BAD_DEVICE_MEMORY"),
            full_at: number("BAD_DEVICE_FULL_AT"),
            units: number("BAD_DEVICE_UNITS"),
        }
    })
}

/// Whether a call meets a lost device; `work` says that it submits something.
fn is_lost(work: bool) -> bool {
    if work && !LOST.load(Ordering::SeqCst) {
        let wish = wish();
        let number = SUBMISSIONS.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(file) = &wish.count {
            let _ = std::fs::write(file, number.to_string());
        }
        while wish.hangs_at.is_some_and(|at| number >= at) {
            std::thread::park();
        }
        LOST.store(wish.lost_at.is_some_and(|at| number >= at), Ordering::SeqCst);
    }
    LOST.load(Ordering::SeqCst)
}

/// The next layer's ways to look a function up.
static NEXT_OF_INSTANCE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static NEXT_OF_DEVICE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Functions that answer by themselves once the device is lost.
macro_rules! intercepted {
    ($($name:ident, $next:ident, $vulkan:literal, $work:literal, ($($argument:ident: $type:ty),*);)*) => {
        $(
            static $next: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

            unsafe extern "system" fn $name($($argument: $type),*) -> i32 {
                if is_lost($work) {
                    return ERROR_DEVICE_LOST;
                }
                // SAFETY: the pointer was looked up by this function's name, and is not
                // null, else this function would not have been handed out.
                let next = unsafe {
                    transmute::<Function, unsafe extern "system" fn($($type),*) -> i32>($next.load(Ordering::SeqCst))
                };
                // SAFETY: the caller's arguments, unchanged.
                unsafe { next($($argument),*) }
            }
        )*

        /// Ours for a function of the device, if it is one of these.
        fn ours(name: &CStr, next: Function) -> Function {
            match name.to_bytes() {
                _ if next.is_null() => next,
                $(
                    $vulkan => {
                        $next.store(next, Ordering::SeqCst);
                        $name as *const () as Function
                    }
                )*
                _ => next,
            }
        }
    };
}

intercepted! {
    queue_submit, NEXT_QUEUE_SUBMIT, b"vkQueueSubmit", true,
        (queue: Handle, count: u32, submits: *const c_void, fence: u64);
    queue_submit2, NEXT_QUEUE_SUBMIT2, b"vkQueueSubmit2", true,
        (queue: Handle, count: u32, submits: *const c_void, fence: u64);
    queue_submit2_khr, NEXT_QUEUE_SUBMIT2_KHR, b"vkQueueSubmit2KHR", true,
        (queue: Handle, count: u32, submits: *const c_void, fence: u64);
    wait_semaphores, NEXT_WAIT_SEMAPHORES, b"vkWaitSemaphores", false,
        (device: Handle, info: *const c_void, timeout: u64);
    wait_semaphores_khr, NEXT_WAIT_SEMAPHORES_KHR, b"vkWaitSemaphoresKHR", false,
        (device: Handle, info: *const c_void, timeout: u64);
    semaphore_value, NEXT_SEMAPHORE_VALUE, b"vkGetSemaphoreCounterValue", false,
        (device: Handle, semaphore: u64, value: *mut u64);
    semaphore_value_khr, NEXT_SEMAPHORE_VALUE_KHR, b"vkGetSemaphoreCounterValueKHR", false,
        (device: Handle, semaphore: u64, value: *mut u64);
    wait_for_fences, NEXT_WAIT_FOR_FENCES, b"vkWaitForFences", false,
        (device: Handle, count: u32, fences: *const u64, all: u32, timeout: u64);
    fence_status, NEXT_FENCE_STATUS, b"vkGetFenceStatus", false,
        (device: Handle, fence: u64);
    queue_wait_idle, NEXT_QUEUE_WAIT_IDLE, b"vkQueueWaitIdle", false,
        (queue: Handle);
    device_wait_idle, NEXT_DEVICE_WAIT_IDLE, b"vkDeviceWaitIdle", false,
        (device: Handle);
}

static NEXT_ALLOCATE_MEMORY: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static ALLOCATED: AtomicU64 = AtomicU64::new(0);

unsafe extern "system" fn allocate_memory(
    device: Handle,
    info: *const u8,
    allocator: *const c_void,
    memory: *mut u64,
) -> i32 {
    type Allocate = unsafe extern "system" fn(Handle, *const u8, *const c_void, *mut u64) -> i32;
    const SIZE: usize = 16;
    // SAFETY: a `VkMemoryAllocateInfo`, whose size lies behind its kind and chain.
    let bytes = unsafe { info.add(SIZE).cast::<u64>().read() };
    let all = ALLOCATED.fetch_add(bytes, Ordering::SeqCst) + bytes;
    if wish().full_at.is_some_and(|full| all > full) {
        return ERROR_OUT_OF_DEVICE_MEMORY;
    }
    // SAFETY: the pointer was looked up by this function's name; the caller's
    // arguments, unchanged.
    unsafe {
        let next = NEXT_ALLOCATE_MEMORY.load(Ordering::SeqCst);
        transmute::<Function, Allocate>(next)(device, info, allocator, memory)
    }
}

/// Functions that tell of a physical device: their answer is changed.
macro_rules! corrected {
    ($($name:ident, $next:ident, $vulkan:literal, $header:literal, $correct:ident;)*) => {
        $(
            static $next: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

            unsafe extern "system" fn $name(device: Handle, answer: *mut u8) {
                // SAFETY: the pointer was looked up by this function's name, and is not
                // null, else this function would not have been handed out; the answer
                // is the caller's structure, which lies behind `$header` bytes.
                unsafe {
                    let next = $next.load(Ordering::SeqCst);
                    transmute::<Function, unsafe extern "system" fn(Handle, *mut u8)>(next)(device, answer);
                    $correct(answer.add($header));
                }
            }
        )*

        /// Ours for a function of the instance, if it is one of these.
        fn ours_of_instance(name: &CStr, next: Function) -> Function {
            match name.to_bytes() {
                _ if next.is_null() => next,
                $(
                    $vulkan => {
                        $next.store(next, Ordering::SeqCst);
                        $name as *const () as Function
                    }
                )*
                _ => next,
            }
        }
    };
}

corrected! {
    memory, NEXT_MEMORY, b"vkGetPhysicalDeviceMemoryProperties", 0, shrink;
    memory2, NEXT_MEMORY2, b"vkGetPhysicalDeviceMemoryProperties2", 16, shrink;
    memory2_khr, NEXT_MEMORY2_KHR, b"vkGetPhysicalDeviceMemoryProperties2KHR", 16, shrink;
    properties, NEXT_PROPERTIES, b"vkGetPhysicalDeviceProperties", 0, limit;
    properties2, NEXT_PROPERTIES2, b"vkGetPhysicalDeviceProperties2", 16, limit;
    properties2_khr, NEXT_PROPERTIES2_KHR, b"vkGetPhysicalDeviceProperties2KHR", 16, limit;
}

/// Overwrites every heap's size in a `VkPhysicalDeviceMemoryProperties`: 32 types of
/// 8 bytes behind their number, then 16 heaps of 16 bytes behind theirs.
///
/// # Safety
/// `answer` is such a structure.
unsafe fn shrink(answer: *mut u8) {
    const HEAPS: usize = 4 + 32 * 8 + 4;
    let Some(bytes) = wish().memory else { return };
    for heap in 0..16 {
        // SAFETY: within the structure, and aligned as it is.
        unsafe { answer.add(HEAPS + 16 * heap).cast::<u64>().write(bytes) }
    }
}

/// Overwrites `maxComputeWorkGroupInvocations` in a `VkPhysicalDeviceProperties`,
/// whose limits begin at byte 296.
///
/// # Safety
/// `answer` is such a structure.
unsafe fn limit(answer: *mut u8) {
    const INVOCATIONS: usize = 296 + 232;
    let Some(units) = wish().units else { return };
    // SAFETY: within the structure, and aligned as it is.
    unsafe { answer.add(INVOCATIONS).cast::<u32>().write(units as u32) }
}

/// `VkNegotiateLayerInterface`.
#[repr(C)]
pub struct Negotiation {
    kind: i32,
    next: *mut c_void,
    version: u32,
    instance_proc_addr: Option<GetProcAddr>,
    device_proc_addr: Option<GetProcAddr>,
    physical_device_proc_addr: Option<GetProcAddr>,
}

/// The loader's first call.
///
/// # Safety
/// `negotiation` is the loader's own.
#[unsafe(no_mangle)]
pub unsafe extern "system" fn vkNegotiateLoaderLayerInterfaceVersion(negotiation: *mut Negotiation) -> i32 {
    // SAFETY: the loader hands over a structure of its own.
    let negotiation = unsafe { &mut *negotiation };
    negotiation.version = 2;
    negotiation.instance_proc_addr = Some(instance_proc_addr);
    negotiation.device_proc_addr = Some(device_proc_addr);
    negotiation.physical_device_proc_addr = None;
    0
}

/// What begins every structure that Vulkan chains.
#[repr(C)]
struct Chained {
    kind: i32,
    next: *mut Chained,
}

/// `VkLayerInstanceCreateInfo` and `VkLayerDeviceCreateInfo`, where they hold a link.
#[repr(C)]
struct Link {
    chained: Chained,
    function: i32,
    layer: *mut LayerLink,
}

/// `VkLayerInstanceLink`; a `VkLayerDeviceLink` has the device's lookup third.
#[repr(C)]
struct LayerLink {
    next: *mut LayerLink,
    instance_proc_addr: GetProcAddr,
    third: *mut c_void,
}

const LOADER_INSTANCE_CREATE_INFO: i32 = 47;
const LOADER_DEVICE_CREATE_INFO: i32 = 48;
const LAYER_LINK_INFO: i32 = 0;

/// Takes this layer's link out of a creation's chain, so that the next layer
/// finds its own.
///
/// # Safety
/// `info` is a chain of the loader's.
unsafe fn take_link(info: *const Chained, kind: i32) -> Option<*mut LayerLink> {
    // SAFETY: the caller's promise.
    let mut at = unsafe { (*info).next };
    while !at.is_null() {
        let link = at.cast::<Link>();
        // SAFETY: every structure of the chain begins like this, and one of this
        // kind goes on with a function and, where that is 0, a link.
        unsafe {
            if (*at).kind == kind && (*link).function == LAYER_LINK_INFO {
                let mine = (*link).layer;
                (*link).layer = (*mine).next;
                return Some(mine);
            }
            at = (*at).next;
        }
    }
    None
}

unsafe extern "system" fn create_instance(info: *const Chained, allocator: *const c_void, made: *mut Handle) -> i32 {
    type Create = unsafe extern "system" fn(*const Chained, *const c_void, *mut Handle) -> i32;
    // SAFETY: the loader's chain.
    let Some(mine) = (unsafe { take_link(info, LOADER_INSTANCE_CREATE_INFO) }) else {
        return ERROR_INITIALIZATION_FAILED;
    };
    // SAFETY: a link that was just found; the next layer has this function.
    unsafe {
        let look_up = (*mine).instance_proc_addr;
        let next = look_up(std::ptr::null_mut(), c"vkCreateInstance".as_ptr());
        NEXT_OF_INSTANCE.store(look_up as *const () as Function, Ordering::SeqCst);
        transmute::<Function, Create>(next)(info, allocator, made)
    }
}

unsafe extern "system" fn create_device(
    physical: Handle,
    info: *const Chained,
    allocator: *const c_void,
    made: *mut Handle,
) -> i32 {
    type Create = unsafe extern "system" fn(Handle, *const Chained, *const c_void, *mut Handle) -> i32;
    // SAFETY: the loader's chain.
    let Some(mine) = (unsafe { take_link(info, LOADER_DEVICE_CREATE_INFO) }) else {
        return ERROR_INITIALIZATION_FAILED;
    };
    // SAFETY: a link that was just found; the next layer has this function.
    unsafe {
        let next = ((*mine).instance_proc_addr)(std::ptr::null_mut(), c"vkCreateDevice".as_ptr());
        NEXT_OF_DEVICE.store((*mine).third, Ordering::SeqCst);
        transmute::<Function, Create>(next)(physical, info, allocator, made)
    }
}

unsafe extern "system" fn instance_proc_addr(instance: Handle, name: *const c_char) -> Function {
    // SAFETY: Vulkan's callers hand over a C string.
    let text = unsafe { CStr::from_ptr(name) };
    match text.to_bytes() {
        b"vkGetInstanceProcAddr" => instance_proc_addr as *const () as Function,
        b"vkGetDeviceProcAddr" => device_proc_addr as *const () as Function,
        b"vkCreateInstance" => create_instance as *const () as Function,
        b"vkCreateDevice" => create_device as *const () as Function,
        _ => {
            let next = NEXT_OF_INSTANCE.load(Ordering::SeqCst);
            if next.is_null() {
                return next;
            }
            // SAFETY: the next layer's lookup, kept when the instance was made.
            ours_of_instance(text, unsafe { transmute::<Function, GetProcAddr>(next)(instance, name) })
        }
    }
}

unsafe extern "system" fn device_proc_addr(device: Handle, name: *const c_char) -> Function {
    // SAFETY: Vulkan's callers hand over a C string.
    let text = unsafe { CStr::from_ptr(name) };
    if text == c"vkGetDeviceProcAddr" {
        return device_proc_addr as *const () as Function;
    }
    let next = NEXT_OF_DEVICE.load(Ordering::SeqCst);
    if next.is_null() {
        return next;
    }
    // SAFETY: the next layer's lookup, kept when the device was made.
    let found = unsafe { transmute::<Function, GetProcAddr>(next)(device, name) };
    if text == c"vkAllocateMemory" && !found.is_null() {
        NEXT_ALLOCATE_MEMORY.store(found, Ordering::SeqCst);
        return allocate_memory as *const () as Function;
    }
    ours(text, found)
}
