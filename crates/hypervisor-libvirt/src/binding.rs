//! Parts of libvirt that the `virt` crate lacks or does not implement soundly: the event loop, domain events, a
//! connection that closes itself, comparing a CPU with the hypervisor's, a graphics device's socket, jobs, a secret's usage. All `unsafe` code of
//! this crate is here.
//!
//! This module does not use Fleetward's types: domains are uuids, events are small enums.
#![allow(unsafe_code)]

pub(crate) mod stats;

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Deref;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Once;
use std::time::Duration;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error;
use virt::secret::Secret;

/// A connection that is closed when it is dropped; `virt`'s own is not.
#[derive(Debug)]
pub(crate) struct Connection(Connect);

impl Connection {
    /// Opens one; starts the event loop before the first, since keepalive and events need it.
    pub(crate) fn open(uri: &str) -> Result<Self, Error> {
        start_event_loop();
        let connection = Self(Connect::open(Some(uri))?);
        // A libvirtd that stops answering for fifteen seconds is gone. Old transports refuse keepalive; they do without.
        let _ = connection.set_keep_alive(5, 3);
        Ok(connection)
    }
}

impl Deref for Connection {
    type Target = Connect;

    fn deref(&self) -> &Connect {
        &self.0
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.0.close();
    }
}

/// What libvirt says of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DomainEvent {
    Changed(Uuid),
    Booted(Uuid),
    Stopped(Uuid),
    Undefined(Uuid),
}

type Callback = Box<dyn Fn(DomainEvent) + Send + Sync>;

/// Registered callbacks; they end when this is dropped. Keeps the connection's object alive, so drop it first.
pub(crate) struct Subscription<'c> {
    connection: &'c Connection,
    ids: Vec<c_int>,
}

impl<'c> Subscription<'c> {
    /// Calls `callback` on the event loop's thread for every event of every domain. It must not block.
    pub(crate) fn new(
        connection: &'c Connection,
        callback: impl Fn(DomainEvent) + Send + Sync + Clone + 'static,
    ) -> Result<Self, Error> {
        let mut subscription = Self {
            connection,
            ids: Vec::new(),
        };
        // SAFETY: libvirt's generic callback type is a place-holder; for VIR_DOMAIN_EVENT_ID_LIFECYCLE it calls the
        // function with exactly `lifecycle`'s signature, and for METADATA_CHANGE with `metadata_change`'s. For
        // VIR_DOMAIN_EVENT_ID_REBOOT it is the generic type itself.
        let lifecycle =
            unsafe { std::mem::transmute::<Lifecycle, Generic>(lifecycle as Lifecycle) };
        // SAFETY: as above.
        let metadata = unsafe {
            std::mem::transmute::<MetadataChange, Generic>(metadata_change as MetadataChange)
        };
        subscription.register(
            virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            lifecycle,
            Box::new(callback.clone()),
        )?;
        subscription.register(
            virt_sys::VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
            metadata,
            Box::new(callback.clone()),
        )?;
        subscription.register(
            virt_sys::VIR_DOMAIN_EVENT_ID_REBOOT,
            reboot,
            Box::new(callback),
        )?;
        Ok(subscription)
    }

    fn register(
        &mut self,
        event: virt_sys::virDomainEventID,
        function: Generic,
        callback: Callback,
    ) -> Result<(), Error> {
        let opaque = Box::into_raw(Box::new(callback)).cast::<c_void>();
        // SAFETY: the connection is open; a null domain means all; `opaque` is a leaked `Box<Callback>` that
        // `free_callback` takes back once libvirt no longer uses it.
        let id = unsafe {
            virt_sys::virConnectDomainEventRegisterAny(
                self.connection.as_ptr(),
                std::ptr::null_mut(),
                event as c_int,
                Some(function),
                opaque,
                Some(free_callback),
            )
        };
        if id < 0 {
            let error = Error::last_error();
            // SAFETY: registration failed, so libvirt neither kept nor freed the pointer.
            drop(unsafe { Box::from_raw(opaque.cast::<Callback>()) });
            return Err(error);
        }
        self.ids.push(id);
        Ok(())
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            // SAFETY: the id came from this connection, which is still open as an object, dead or alive.
            unsafe { virt_sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), id) };
        }
    }
}

/// The host's whole memory in bytes, as its kernel counts it; `None` where libvirt does not report a total.
/// `virNodeGetInfo` sums NUMA nodes and can be far below it.
pub(crate) fn node_memory(connection: &Connection) -> Result<Option<u64>, Error> {
    let mut count: c_int = 0;
    let cells = virt_sys::VIR_NODE_MEMORY_STATS_ALL_CELLS;
    // SAFETY: the connection is open; without a buffer libvirt only tells how many figures there are.
    let told = unsafe {
        virt_sys::virNodeGetMemoryStats(
            connection.as_ptr(),
            cells,
            std::ptr::null_mut(),
            &mut count,
            0,
        )
    };
    if told < 0 {
        return Err(Error::last_error());
    }
    let empty = virt_sys::virNodeMemoryStats {
        field: [0; 80],
        value: 0,
    };
    let mut figures = vec![empty; usize::try_from(count).unwrap_or_default()];
    // SAFETY: as above; the buffer has room for the `count` figures that libvirt writes.
    let told = unsafe {
        virt_sys::virNodeGetMemoryStats(
            connection.as_ptr(),
            cells,
            figures.as_mut_ptr(),
            &mut count,
            0,
        )
    };
    if told < 0 {
        return Err(Error::last_error());
    }
    let named = |figure: &&virt_sys::virNodeMemoryStats| {
        let name: Vec<u8> = figure.field.iter().map(|c| c.to_ne_bytes()[0]).collect();
        name.starts_with(b"total\0")
    };
    let total = figures.iter().find(named);
    Ok(total.map(|figure| figure.value * 1024))
}

type Generic = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);
type Lifecycle = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    c_int,
    c_int,
    *mut c_void,
) -> c_int;
type MetadataChange = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    c_int,
    *const std::ffi::c_char,
    *mut c_void,
);

unsafe extern "C" fn lifecycle(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt passes a live domain for the length of the call.
    if let Some(id) = unsafe { uuid_of(domain) } {
        let event = event as virt_sys::virDomainEventType;
        let booted = event == virt_sys::VIR_DOMAIN_EVENT_STARTED
            && detail as virt_sys::virDomainEventStartedDetailType
                == virt_sys::VIR_DOMAIN_EVENT_STARTED_BOOTED;
        if booted {
            // SAFETY: `opaque` is the `Box<Callback>` given at registration, not yet freed.
            unsafe { call(opaque, DomainEvent::Booted(id)) };
        }
        let event = match event {
            virt_sys::VIR_DOMAIN_EVENT_STOPPED => DomainEvent::Stopped(id),
            virt_sys::VIR_DOMAIN_EVENT_UNDEFINED => DomainEvent::Undefined(id),
            _ => DomainEvent::Changed(id),
        };
        // SAFETY: `opaque` is the `Box<Callback>` given at registration, not yet freed.
        unsafe { call(opaque, event) };
    }
    0
}

unsafe extern "C" fn reboot(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a live domain for the length of the call.
    if let Some(id) = unsafe { uuid_of(domain) } {
        // SAFETY: `opaque` is the `Box<Callback>` given at registration, not yet freed.
        unsafe { call(opaque, DomainEvent::Booted(id)) };
    }
}

unsafe extern "C" fn metadata_change(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    _kind: c_int,
    _uri: *const std::ffi::c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes a live domain for the length of the call.
    if let Some(id) = unsafe { uuid_of(domain) } {
        // SAFETY: `opaque` is the `Box<Callback>` given at registration, not yet freed.
        unsafe { call(opaque, DomainEvent::Changed(id)) };
    }
}

/// SAFETY: `opaque` is a live `Box<Callback>`'s pointer.
unsafe fn call(opaque: *mut c_void, event: DomainEvent) {
    // SAFETY: the caller's promise.
    let callback = unsafe { &*opaque.cast::<Callback>() };
    callback(event);
}

/// SAFETY: `domain` is a live domain.
unsafe fn uuid_of(domain: virt_sys::virDomainPtr) -> Option<Uuid> {
    let mut bytes = [0_u8; 16];
    // SAFETY: the caller's promise; the buffer has VIR_UUID_BUFLEN bytes.
    let answer = unsafe { virt_sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    (answer == 0).then(|| Uuid::from_bytes(bytes))
}

unsafe extern "C" fn free_callback(opaque: *mut c_void) {
    // SAFETY: libvirt calls this once, when it has made its last call with the pointer.
    drop(unsafe { Box::from_raw(opaque.cast::<Callback>()) });
}

/// Starts the one event loop of this process. libvirt wants it registered before any connection is opened.
fn start_event_loop() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // Without this libvirt prints every error on stderr.
        virt::error::clear_error_callback();
        // SAFETY: called once, before any connection of this process.
        let registered = unsafe { virt_sys::virEventRegisterDefaultImpl() };
        if registered < 0 {
            tracing::error!(error = %Error::last_error(), "no libvirt event loop; events are missing");
            return;
        }
        let spawned = std::thread::Builder::new()
            .name("libvirt-events".into())
            .spawn(|| {
                loop {
                    // SAFETY: the default implementation is registered, and only this thread runs it.
                    if unsafe { virt_sys::virEventRunDefaultImpl() } < 0 {
                        tracing::warn!(error = %Error::last_error(), "a round of libvirt's event loop failed");
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                }
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for libvirt's event loop; events are missing");
        }
    });
}

/// How a CPU compares with what the default emulator offers for `virttype` (`kvm` or `qemu`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CpuComparison {
    Incompatible,
    Fits,
}

/// Compares; with missing features libvirt fails and names them in the error.
pub(crate) fn compare_hypervisor_cpu(
    connection: &Connection,
    virttype: &str,
    cpu_xml: &str,
) -> Result<CpuComparison, Error> {
    // Texts with a NUL byte end there; libvirt then complains of broken XML.
    let c_string =
        |text: &str| CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default();
    let virttype = c_string(virttype);
    let cpu = c_string(cpu_xml);
    // SAFETY: an open connection, NUL-terminated strings that outlive the call, null where libvirt chooses itself.
    let answer = unsafe {
        virt_sys::virConnectCompareHypervisorCPU(
            connection.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            std::ptr::null(),
            virttype.as_ptr(),
            cpu.as_ptr(),
            virt_sys::VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE,
        )
    };
    match answer {
        virt_sys::VIR_CPU_COMPARE_INCOMPATIBLE => Ok(CpuComparison::Incompatible),
        virt_sys::VIR_CPU_COMPARE_IDENTICAL | virt_sys::VIR_CPU_COMPARE_SUPERSET => {
            Ok(CpuComparison::Fits)
        }
        _ => Err(Error::last_error()),
    }
}

/// Connects to the graphics device of that number, without a password: one end of a socket pair, QEMU has the other.
///
/// (`virt` gives the descriptor as a number.)
pub(crate) fn open_graphics(domain: &Domain, index: u32) -> Result<OwnedFd, Error> {
    let flags = virt_sys::VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH;
    // SAFETY: a live domain.
    match unsafe { virt_sys::virDomainOpenGraphicsFD(domain.as_ptr(), index, flags) } {
        // SAFETY: a descriptor that libvirt has just opened, and that the caller has to close.
        descriptor @ 0.. => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(Error::last_error()),
    }
}

/// Stops the domain's job, a migration in our case; returns before the job has ended.
pub(crate) fn abort_job(domain: &Domain) -> Result<(), Error> {
    // SAFETY: a live domain.
    match unsafe { virt_sys::virDomainAbortJob(domain.as_ptr()) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// Begins to mirror a disk to the volume that `xml` describes; it goes on by itself.
pub(crate) fn block_copy(domain: &Domain, disk: &str, xml: &str, flags: u32) -> Result<(), Error> {
    let (disk, xml) = (c_text(disk), c_text(xml));
    // SAFETY: a live domain, NUL-terminated texts that outlive the call, and no parameters.
    match unsafe {
        virt_sys::virDomainBlockCopy(
            domain.as_ptr(),
            disk.as_ptr(),
            xml.as_ptr(),
            std::ptr::null_mut(),
            0,
            flags,
        )
    } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// Bytes of a disk's job.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct BlockJob {
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// The job of a disk, if it has one.
pub(crate) fn block_job(domain: &Domain, disk: &str) -> Result<Option<BlockJob>, Error> {
    let disk = c_text(disk);
    let mut info = virt_sys::virDomainBlockJobInfo {
        type_: 0,
        bandwidth: 0,
        cur: 0,
        end: 0,
    };
    // SAFETY: a live domain, a NUL-terminated text that outlives the call, and a place for the answer.
    match unsafe {
        virt_sys::virDomainGetBlockJobInfo(domain.as_ptr(), disk.as_ptr(), &mut info, 0)
    } {
        0 => Ok(None),
        1 => Ok(Some(BlockJob {
            done: info.cur,
            total: info.end,
        })),
        _ => Err(Error::last_error()),
    }
}

/// Ends the job of a disk, or with `VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT` switches to its copy; returns when it has ended.
pub(crate) fn block_job_abort(domain: &Domain, disk: &str, flags: u32) -> Result<(), Error> {
    let disk = c_text(disk);
    // SAFETY: a live domain and a NUL-terminated text that outlives the call.
    match unsafe { virt_sys::virDomainBlockJobAbort(domain.as_ptr(), disk.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// A text with a NUL byte ends there; libvirt then refuses what is left.
fn c_text(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

/// Begins a copy of disks as they are now; it goes on by itself.
pub(crate) fn begin_backup(domain: &Domain, xml: &str) -> Result<(), Error> {
    // A text with a NUL byte ends there; libvirt then complains of broken XML.
    let xml = CString::new(xml.split('\0').next().unwrap_or_default()).unwrap_or_default();
    // SAFETY: a live domain, a NUL-terminated text that outlives the call, and no checkpoint.
    match unsafe {
        virt_sys::virDomainBackupBegin(domain.as_ptr(), xml.as_ptr(), std::ptr::null(), 0)
    } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// What a domain's job is and how far it has come; zero where libvirt does not say.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobStats {
    /// A migration that leaves this host is under way, or was the job that completed.
    pub(crate) outgoing: bool,
    /// A copy of disks is under way, or was the job that completed.
    pub(crate) backup: bool,
    /// Whether the completed job succeeded, and libvirt's words when not.
    pub(crate) success: Option<bool>,
    pub(crate) error: Option<String>,
    pub(crate) memory_done: u64,
    pub(crate) memory_total: u64,
    pub(crate) disk_done: u64,
    pub(crate) disk_total: u64,
    pub(crate) data_done: u64,
    pub(crate) elapsed_ms: Option<u64>,
    pub(crate) downtime_ms: Option<u64>,
}

/// For how long the domain's QEMU has not answered what libvirt asked it last; none while it owes no answer. libvirt tells
/// that at once. Also none where it cannot be told, as of a domain that has stopped.
pub(crate) fn unanswered(domain: &Domain) -> Option<Duration> {
    let mut info = virt_sys::virDomainControlInfo {
        state: 0,
        details: 0,
        stateTime: 0,
    };
    // SAFETY: a live domain, and a place for the answer.
    let answer = unsafe { virt_sys::virDomainGetControlInfo(domain.as_ptr(), &mut info, 0) };
    let occupied = answer == 0 && info.state == virt_sys::VIR_DOMAIN_CONTROL_OCCUPIED;
    occupied.then(|| Duration::from_millis(info.stateTime))
}

/// The current job's figures, or with `completed` those of the last that ended.
///
/// (`virt` makes a `Vec` of libvirt's possibly null array.)
pub(crate) fn job_stats(domain: &Domain, completed: bool) -> Result<JobStats, Error> {
    let flags = if completed {
        virt_sys::VIR_DOMAIN_JOB_STATS_COMPLETED
    } else {
        0
    };
    let mut kind: c_int = 0;
    let mut count: c_int = 0;
    let mut parameters: virt_sys::virTypedParameterPtr = std::ptr::null_mut();
    // SAFETY: a live domain, and places for the three answers.
    let answer = unsafe {
        virt_sys::virDomainGetJobStats(
            domain.as_ptr(),
            &mut kind,
            &mut parameters,
            &mut count,
            flags,
        )
    };
    if answer < 0 {
        return Err(Error::last_error());
    }
    let number = |name: &CStr| {
        let mut value = 0;
        // SAFETY: the array libvirt just allocated, with its own count; a missing name answers 0.
        let found = unsafe {
            virt_sys::virTypedParamsGetULLong(parameters, count, name.as_ptr(), &mut value)
        };
        (found == 1).then_some(value)
    };
    let mut operation: c_int = 0;
    // SAFETY: as above.
    let named = unsafe {
        virt_sys::virTypedParamsGetInt(
            parameters,
            count,
            virt_sys::VIR_DOMAIN_JOB_OPERATION.as_ptr(),
            &mut operation,
        )
    };
    let mut succeeded: c_int = 0;
    // SAFETY: as above.
    let judged = unsafe {
        virt_sys::virTypedParamsGetBoolean(
            parameters,
            count,
            virt_sys::VIR_DOMAIN_JOB_SUCCESS.as_ptr(),
            &mut succeeded,
        )
    };
    let mut message: *const std::ffi::c_char = std::ptr::null();
    // SAFETY: as above; the text belongs to the array.
    let complained = unsafe {
        virt_sys::virTypedParamsGetString(
            parameters,
            count,
            virt_sys::VIR_DOMAIN_JOB_ERRMSG.as_ptr(),
            &mut message,
        )
    };
    let error = (complained == 1 && !message.is_null()).then(|| {
        // SAFETY: a NUL-terminated text of the array, which is freed only below.
        unsafe { CStr::from_ptr(message) }
            .to_string_lossy()
            .into_owned()
    });
    let is = |wanted: virt_sys::virDomainJobOperation| {
        kind != virt_sys::VIR_DOMAIN_JOB_NONE as c_int && named == 1 && operation == wanted as c_int
    };
    let stats = JobStats {
        backup: is(virt_sys::VIR_DOMAIN_JOB_OPERATION_BACKUP),
        success: (judged == 1).then_some(succeeded == 1),
        error,
        outgoing: is(virt_sys::VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT),
        memory_done: number(virt_sys::VIR_DOMAIN_JOB_MEMORY_PROCESSED).unwrap_or(0),
        memory_total: number(virt_sys::VIR_DOMAIN_JOB_MEMORY_TOTAL).unwrap_or(0),
        disk_done: number(virt_sys::VIR_DOMAIN_JOB_DISK_PROCESSED).unwrap_or(0),
        disk_total: number(virt_sys::VIR_DOMAIN_JOB_DISK_TOTAL).unwrap_or(0),
        data_done: number(virt_sys::VIR_DOMAIN_JOB_DATA_PROCESSED).unwrap_or(0),
        elapsed_ms: number(virt_sys::VIR_DOMAIN_JOB_TIME_ELAPSED),
        downtime_ms: number(virt_sys::VIR_DOMAIN_JOB_DOWNTIME),
    };
    // SAFETY: libvirt's array, not used after this; null is fine.
    unsafe { virt_sys::virTypedParamsFree(parameters, count) };
    Ok(stats)
}

/// What a secret is for, as named when it was defined.
///
/// (`virt` frees the text, which still belongs to the secret.)
pub(crate) fn secret_usage(secret: &Secret) -> Result<String, Error> {
    // SAFETY: a live secret.
    let usage = unsafe { virt_sys::virSecretGetUsageID(secret.as_ptr()) };
    if usage.is_null() {
        return Err(Error::last_error());
    }
    // SAFETY: a NUL-terminated text that lives as long as the secret, which is borrowed here.
    let usage = unsafe { CStr::from_ptr(usage) };
    Ok(usage.to_string_lossy().into_owned())
}

/// A text that libvirt tells under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) field: String,
    pub(crate) value: String,
}

/// Longest text taken of a guest, bytes.
const LONGEST: usize = 1024;
/// Most of them; libvirt's own protocol has about that limit.
const MOST_TEXTS: usize = 2048;

/// What the guest's agent says of the guest's name, its system and its network cards: the texts of the answer.
pub(crate) fn guest_info(domain: &Domain) -> Result<Vec<Named>, Error> {
    let types = virt_sys::VIR_DOMAIN_GUEST_INFO_OS
        | virt_sys::VIR_DOMAIN_GUEST_INFO_HOSTNAME
        | virt_sys::VIR_DOMAIN_GUEST_INFO_INTERFACES;
    let mut count: c_int = 0;
    let mut parameters: virt_sys::virTypedParameterPtr = std::ptr::null_mut();
    // SAFETY: a live domain, and places for the two answers.
    let answer = unsafe {
        virt_sys::virDomainGetGuestInfo(domain.as_ptr(), types, &mut parameters, &mut count, 0)
    };
    if answer < 0 {
        return Err(Error::last_error());
    }
    let mut texts = Vec::new();
    let length = usize::try_from(count).unwrap_or_default();
    for index in 0..length.min(MOST_TEXTS) {
        // SAFETY: libvirt's array has `count` parameters, and `index` is below it.
        let parameter = unsafe { &*parameters.add(index) };
        if parameter.type_ != virt_sys::VIR_TYPED_PARAM_STRING as c_int {
            continue;
        }
        // SAFETY: of a parameter of the type string, `s` is the member that is set.
        let value = unsafe { parameter.value.s };
        // SAFETY: its name and its value are NUL-terminated texts of the array, which is freed only below.
        let (field, value) = unsafe { (text(parameter.field.as_ptr()), text(value)) };
        texts.push(Named { field, value });
    }
    // SAFETY: libvirt's array, not used after this; null is fine.
    unsafe { virt_sys::virTypedParamsFree(parameters, count) };
    Ok(texts)
}

/// The first [`LONGEST`] bytes of a text, empty for none.
///
/// SAFETY: `text` is null, or a NUL-terminated text.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(text) }.to_bytes();
    String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST)]).into_owned()
}

/// The MAC of each card with the addresses that `source` knows for it, at most `most` of each.
pub(crate) fn interface_addresses(
    domain: &Domain,
    source: virt_sys::virDomainInterfaceAddressesSource,
    most: usize,
) -> Result<Vec<(String, Vec<String>)>, Error> {
    let mut cards: *mut virt_sys::virDomainInterfacePtr = std::ptr::null_mut();
    // SAFETY: a live domain, and a place for the answer.
    let count =
        unsafe { virt_sys::virDomainInterfaceAddresses(domain.as_ptr(), &mut cards, source, 0) };
    if count < 0 {
        return Err(Error::last_error());
    }
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or_default() {
        // SAFETY: libvirt's array has `count` pointers to cards, and `index` is below it.
        let card = unsafe { *cards.add(index) };
        if found.len() < most {
            // SAFETY: a card of the array, freed only below.
            let card = unsafe { &*card };
            let addresses = (0..most.min(card.naddrs as usize)).map(|index| {
                // SAFETY: the card has `naddrs` addresses; each text is NUL-terminated.
                unsafe { text((*card.addrs.add(index)).addr) }
            });
            let addresses = addresses.collect();
            // SAFETY: null, or a NUL-terminated text of the card.
            found.push((unsafe { text(card.hwaddr) }, addresses));
        }
        // SAFETY: the caller of libvirt's function frees each card, once.
        unsafe { virt_sys::virDomainInterfaceFree(card) };
    }
    // SAFETY: and the array, which libvirt has allocated with malloc; null is fine.
    unsafe { nix::libc::free(cards.cast::<c_void>()) };
    Ok(found)
}

/// How many seconds libvirt waits for an answer of the guest's agent from now on.
pub(crate) fn agent_patience(domain: &Domain, seconds: c_int) -> Result<(), Error> {
    // SAFETY: a live domain.
    match unsafe { virt_sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) } {
        0 => Ok(()),
        _ => Err(Error::last_error()),
    }
}

/// Has the guest's agent freeze every file system.
pub(crate) fn freeze(domain: &Domain) -> Result<(), Error> {
    // SAFETY: a live domain; without a list of mount points all are meant.
    let frozen =
        unsafe { virt_sys::virDomainFSFreeze(domain.as_ptr(), std::ptr::null_mut(), 0, 0) };
    if frozen < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}

/// Has the guest's agent thaw every file system.
pub(crate) fn thaw(domain: &Domain) -> Result<(), Error> {
    // SAFETY: as above.
    let thawed = unsafe { virt_sys::virDomainFSThaw(domain.as_ptr(), std::ptr::null_mut(), 0, 0) };
    if thawed < 0 {
        return Err(Error::last_error());
    }
    Ok(())
}
