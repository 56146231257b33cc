//! Turns a request for a VM into the input of the job `vm-create`: resolves sizes with the profile, finds images,
//! chooses names.

use crate::hosts::Hosts;
use crate::images::Images;
use crate::networks::new_mac;
use crate::templates::Templates;
use crate::work::{CreateInput, Reservation};
use fleetward_api::controller::{ImageView, TemplateView, VmCreateRequest};
use fleetward_api::seed::Seed;
use fleetward_model::change::disk::require_size;
use fleetward_model::change::{self, NicAsked};
use fleetward_model::disk::{DiskMark, DiskSerial, MAX_DISKS, MAX_DRIVES, free_target};
use fleetward_model::fit::{DiskNeed, Needs, NetworkNeed};
use fleetward_model::host::Formats;
use fleetward_model::name::MAX_LABEL_VALUE;
use fleetward_model::placement::Choice;
use fleetward_model::profile::{Asked, Devices, Hardware};
use fleetward_model::vm::{
    DiskBus, DiskSpec, DriveSpec, Firmware, FirmwareKind, Medium, NicModel, NicSpec, VmSpec,
    VolumeSource,
};
use fleetward_model::{
    ByteSize, ErrorCode, Failure, GroupName, HostName, ImageName, NetworkName, VmId, VmName,
};
use time::OffsetDateTime;
use uuid::Uuid;

/// An empty qcow2 file takes less than this.
pub(crate) const EMPTY_VOLUME: ByteSize = ByteSize::mib(1);

/// A VM that could be made, on any host that fits.
pub(crate) struct Wanted {
    template: Option<TemplateView>,
    pub(crate) name: VmName,
    pub(crate) needs: Needs,
    pub(crate) choice: Choice,
    request: VmCreateRequest,
    hardware: Hardware,
    image: Option<ImageView>,
    /// What is in its drives.
    isos: Vec<ImageView>,
    /// One for each disk beside the system disk.
    marks: Vec<DiskMark>,
    /// None: one in the default network of its host.
    nics: Option<Vec<NicSpec>>,
}

/// Resolves and checks a request. Who names neither host nor group means the default group, where the fleet has one.
pub(crate) fn plan(
    images: &Images,
    templates: &Templates,
    hosts: &Hosts,
    mut request: VmCreateRequest,
) -> Result<Wanted, Failure> {
    let name = request.name.clone();
    let template = request
        .template
        .as_ref()
        .map(|template| templates.of(template))
        .transpose()?;
    if let Some(template) = &template {
        let media = request
            .iso
            .iter()
            .chain(&request.more_isos)
            .chain(&request.drivers);
        if request.image.is_some() || media.count() > 0 {
            let what = "a VM is made from a template, or from an image or installer medium";
            return Err(Failure::new(ErrorCode::InvalidArgument, what).fix("leave out one of them"));
        }
        request.profile = template.profile;
        request.cpus = request.cpus.or(Some(template.cpus));
        request.memory_bytes = request.memory_bytes.or(Some(template.memory_bytes));
        check_variables(template, &request)?;
        request.secure_boot &= template.secure_boot;
    }
    check_labels(&request)?;
    let image = request
        .image
        .as_ref()
        .map(|image| disk_image(images, image))
        .transpose()?;
    if request.drivers.is_some() && !request.profile.lacks_drivers() {
        let what = format!(
            "guests of profile {} have the drivers for virtio",
            request.profile
        );
        return Err(Failure::new(ErrorCode::InvalidArgument, what).fix("leave out --drivers"));
    }
    let media = request.iso.iter().chain(&request.more_isos);
    let isos: Vec<ImageView> = (media.chain(&request.drivers))
        .map(|iso| installer(images, iso))
        .collect::<Result<_, _>>()?;
    check_devices(&request, isos.len())?;
    let image_size = match &template {
        Some(template) => template.disks.first().map(|disk| disk.size),
        None => image
            .as_ref()
            .map(|image| ByteSize(image.virtual_size_bytes.next_multiple_of(512))),
    };
    let origin = || match (&request.template, &request.image) {
        (Some(template), _) => format!("template {template}"),
        (None, Some(image)) => format!("image {image}"),
        (None, None) => "its content".to_owned(),
    };
    if let (Some(asked), Some(least)) = (request.disk_bytes, image_size)
        && asked < least
    {
        let what = format!(
            "a disk of {asked} is smaller than {}, which needs {least}",
            origin()
        );
        return Err(
            Failure::new(ErrorCode::InvalidArgument, what).fix("leave out --disk, or ask for more")
        );
    }
    let asked = Asked {
        cpus: request.cpus,
        memory: request.memory_bytes,
        disk: request.disk_bytes.or(image_size),
        tpm: request.tpm,
        secure_boot: request.secure_boot,
    };
    let hardware = request.profile.resolve(asked).map_err(|findings| {
        let what = format!("VM {name} cannot be made with profile {}", request.profile);
        Failure::from_findings(what, findings).expect("a refusal has findings")
    })?;
    let of_template = template.as_ref().and_then(|template| template.nics.clone());
    let nics = request.nics.clone().or(of_template);
    let nics = nics
        .map(|asked| cards(asked, devices_of(&request).network))
        .transpose()?;
    let default = GroupName::default();
    let has_default = || hosts.all().iter().any(|host| host.group == default);
    let group = match (&request.group, &request.host) {
        (None, None) => has_default().then(|| default.clone()),
        (asked, _) => asked.clone(),
    };
    let written = match (&template, &image) {
        (Some(template), _) => ByteSize(template.disks.iter().map(|disk| disk.file_bytes).sum()),
        (None, Some(image)) => ByteSize(image.size_bytes),
        (None, None) => EMPTY_VOLUME,
    };
    let mut wanted = Wanted {
        choice: Choice {
            host: request.host.clone(),
            except: None,
        },
        needs: Needs {
            name: Some(name.clone()),
            group,
            disks: vec![DiskNeed {
                target: first_target(&request).to_owned(),
                pool: request.pool.clone(),
                written,
                ..DiskNeed::default()
            }],
            networks: nics.iter().flatten().map(NetworkNeed::from).collect(),
            memory: hardware.memory,
            runs: request.start,
            tpm: hardware.tpm,
            secure_boot: hardware.secure_boot,
            ..Needs::default()
        },
        marks: request.more_disks.iter().map(|_| new_mark()).collect(),
        name,
        template,
        request,
        hardware,
        image,
        isos,
        nics,
    };
    let network = NetworkName::default();
    let (spec, _) =
        wanted.specification(GroupName::default(), &network, OffsetDateTime::UNIX_EPOCH);
    // Those of the template are in the first.
    let more = spec.disks.len() - wanted.marks.len();
    let empty = spec.disks[more..].iter().map(|disk| DiskNeed {
        target: disk.target.clone(),
        pool: disk.pool.clone(),
        written: EMPTY_VOLUME,
        ..DiskNeed::default()
    });
    wanted.needs.disks.extend(empty);
    wanted.needs.formats = Formats::of_spec(&spec);
    Ok(wanted)
}

impl Wanted {
    /// What it will be, under a new id, and the content of its disks.
    fn specification(
        &self,
        group: GroupName,
        network: &NetworkName,
        now: OffsetDateTime,
    ) -> (VmSpec, Vec<VolumeSource>) {
        let id = Uuid::new_v4();
        let devices = devices_of(&self.request);
        let target = first_target(&self.request);
        let disk = |target: &str, bus, size| {
            let volume = format!("{id}-{target}.qcow2");
            DiskSpec::new(target, bus, self.request.pool.clone(), volume, size)
        };
        let from_image = |image: &ImageName, sha256: &str| VolumeSource::Image {
            image: image.clone(),
            sha256: sha256.to_owned(),
        };
        let (mut disks, mut sources): (Vec<_>, Vec<_>) = match (&self.template, &self.image) {
            (Some(template), _) => {
                let name = template.name.as_str().parse().expect("names are alike");
                let made = template.disks.iter().enumerate().map(|(at, known)| {
                    let size = if at == 0 {
                        self.hardware.disk
                    } else {
                        known.size
                    };
                    let made = disk(&known.target, known.bus, size);
                    let spec = DiskSpec {
                        id: known.id.clone().unwrap_or(made.id),
                        serial: known.serial.clone(),
                        ..made
                    };
                    (spec, from_image(&name, &known.sha256))
                });
                made.unzip()
            }
            (None, image) => {
                let source = image.as_ref().map_or(VolumeSource::Empty, |image| {
                    from_image(&image.name, &image.sha256)
                });
                let spec = disk(target, devices.disk_bus, self.hardware.disk);
                (vec![spec], vec![source])
            }
        };
        self.add_disks(VmId(id), &mut disks);
        sources.resize(disks.len(), VolumeSource::Empty);
        let mut drives: Vec<DriveSpec> = Vec::new();
        for iso in &self.isos {
            let drive = DriveSpec::next(
                self.request.profile,
                targets(&disks, &drives),
                Some(medium_of(iso)),
            );
            drives.extend(drive);
        }
        if self.seed().is_some() {
            let taken = targets(&disks, &drives);
            let drive = DriveSpec::with_seed(self.request.profile, taken);
            drives.push(drive.expect("there are more names than disks and drives"));
        }
        let spec = VmSpec {
            group,
            cpus: self.hardware.cpus,
            memory: self.hardware.memory,
            firmware: Firmware {
                kind: FirmwareKind::Uefi,
                secure_boot: self.hardware.secure_boot,
            },
            tpm: self.hardware.tpm,
            disks,
            drives,
            nics: self.nics.clone().unwrap_or_else(|| {
                vec![NicSpec {
                    network: network.clone(),
                    model: devices.network,
                    ..NicSpec::first(self.request.profile, new_mac())
                }]
            }),
            description: self.request.description.clone(),
            autostart: self.request.autostart,
            boot: self.request.boot,
            clock: self.template.as_ref().and_then(|template| template.clock),
            labels: self.request.labels.clone(),
            ..VmSpec::bare(VmId(id), self.name.clone(), self.request.profile, now)
        };
        (spec, sources)
    }

    /// What the guest is to find at its first boot.
    pub(crate) fn seed(&self) -> Option<&Seed> {
        self.request.seed.as_ref().filter(|seed| !seed.is_empty())
    }

    /// The disks beside the system disk. Where there are any, all have a serial number by which the guest tells them apart; a
    /// VM with one disk is one that programs of every version know.
    fn add_disks(&self, vm: VmId, disks: &mut Vec<DiskSpec>) {
        for (asked, mark) in self.request.more_disks.iter().zip(&self.marks) {
            let bus = asked.bus.unwrap_or(devices_of(&self.request).disk_bus);
            let pool = asked.pool.as_ref().unwrap_or(&self.request.pool).clone();
            let taken = disks.iter().map(|disk| disk.target.as_str());
            let target = free_target(bus, taken).expect("there are more names than disks");
            disks.push(DiskSpec::added(
                vm,
                mark,
                target,
                bus,
                pool,
                asked.size_bytes,
            ));
        }
        if !self.marks.is_empty() {
            for disk in disks.iter_mut().filter(|disk| disk.serial.is_none()) {
                disk.serial = Some(DiskSerial::of(&disk.id));
            }
        }
    }

    /// What it needs on a host with that default network.
    pub(crate) fn needs_with(&self, network: &NetworkName) -> Needs {
        let mut needs = self.needs.clone();
        if self.nics.is_none() {
            needs.networks = vec![NetworkNeed {
                network: network.clone(),
                ..NetworkNeed::default()
            }];
        }
        needs
    }

    /// The addresses that its cards are to have.
    pub(crate) fn macs(&self) -> impl Iterator<Item = &str> {
        self.nics.iter().flatten().map(|nic| nic.mac.as_str())
    }

    /// The job's input, now that the host is chosen; `network` is that host's default.
    pub(crate) fn on(
        &self,
        host: HostName,
        group: GroupName,
        network: &NetworkName,
        now: OffsetDateTime,
    ) -> CreateInput {
        let (spec, sources) = self.specification(group, network, now);
        let variables = self
            .template
            .as_ref()
            .and_then(|template| template.uefi_variables.clone());
        let images = self.image.iter().chain(&self.isos);
        let mut needed: Vec<(String, String)> = images
            .map(|image| (image.sha256.clone(), image.format.clone()))
            .collect();
        let disks = self.template.iter().flat_map(|template| &template.disks);
        needed.extend(disks.map(|disk| (disk.sha256.clone(), "qcow2".to_owned())));
        needed.extend(
            variables
                .iter()
                .map(|sha256| (sha256.clone(), "raw".to_owned())),
        );
        let taken = self.needs.takes(None);
        CreateInput {
            vm: spec.id,
            name: self.name.clone(),
            reservation: Reservation {
                host: host.clone(),
                memory: taken.memory,
                space: taken.space,
                vm: Some(spec.id),
            },
            host,
            spec,
            sources,
            variables,
            images: needed,
            start: self.request.start,
        }
    }
}

/// What a new disk is told apart by.
pub(crate) fn new_mark() -> DiskMark {
    let [a, b, c, d, ..] = *Uuid::new_v4().as_bytes();
    DiskMark::of(u32::from_be_bytes([a, b, c, d]))
}

/// An installer medium as a drive holds it.
pub(crate) fn medium_of(iso: &ImageView) -> Medium {
    Medium {
        image: iso.name.clone(),
        sha256: iso.sha256.clone(),
    }
}

/// Kept UEFI variables hold the keys of Secure Boot, so they say whether it is on, whatever is asked for.
fn check_variables(template: &TemplateView, request: &VmCreateRequest) -> Result<(), Failure> {
    if request.secure_boot || !template.secure_boot || template.uefi_variables.is_none() {
        return Ok(());
    }
    let name = &template.name;
    let what = format!("template {name} switches Secure Boot on");
    Err(Failure::new(ErrorCode::InvalidArgument, what)
        .because("it keeps the UEFI variables of its VM, in which Secure Boot is on")
        .fix(format!(
            "fleetward vm create {} --template {name}",
            request.name
        )))
}

fn check_devices(request: &VmCreateRequest, drives: usize) -> Result<(), Failure> {
    for disk in &request.more_disks {
        require_size(disk.size_bytes)?;
    }
    for (what, number, most) in [
        ("disks", request.more_disks.len() + 1, MAX_DISKS),
        ("drives", drives, MAX_DRIVES),
    ] {
        if number > most {
            let what = format!("{number} {what} were asked for; a VM has at most {most}");
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .fix("ask for fewer, and add more later"));
        }
    }
    Ok(())
}

/// What the profile makes of the devices, with or without drivers for virtio.
fn devices_of(request: &VmCreateRequest) -> Devices {
    match request.drivers {
        Some(_) => request.profile.devices_with_drivers(),
        None => request.profile.devices(),
    }
}

/// The cards that are asked for, each with an address.
fn cards(mut asked: Vec<NicAsked>, model: NicModel) -> Result<Vec<NicSpec>, Failure> {
    for nic in &mut asked {
        nic.mac.get_or_insert_with(new_mac);
    }
    change::nic::cards(&asked, model)
}

/// The targets that are taken.
fn targets<'a>(
    disks: &'a [DiskSpec],
    drives: &'a [DriveSpec],
) -> impl Iterator<Item = &'a str> + Clone {
    let disks = disks.iter().map(|disk| disk.target.as_str());
    disks.chain(drives.iter().map(|drive| drive.target.as_str()))
}

/// The name of a VM's first disk.
fn first_target(request: &VmCreateRequest) -> &'static str {
    match devices_of(request).disk_bus {
        DiskBus::Virtio => "vda",
        DiskBus::Sata | DiskBus::Scsi => "sda",
    }
}

fn disk_image(images: &Images, name: &ImageName) -> Result<ImageView, Failure> {
    let image = images.of(name)?;
    if image.format == "iso" {
        let what = format!("image {name} is an installer medium, not a disk");
        return Err(
            Failure::new(ErrorCode::ImageInvalid, what).fix(format!("--iso {name} --disk 64G"))
        );
    }
    Ok(image)
}

pub(crate) fn installer(images: &Images, name: &ImageName) -> Result<ImageView, Failure> {
    let image = images.of(name)?;
    if image.format != "iso" {
        let what = format!("image {name} is a disk, not an installer medium");
        return Err(Failure::new(ErrorCode::ImageInvalid, what).fix(format!("--image {name}")));
    }
    Ok(image)
}

fn check_labels(request: &VmCreateRequest) -> Result<(), Failure> {
    for (key, value) in &request.labels {
        if value.len() > MAX_LABEL_VALUE || value.chars().any(char::is_control) {
            let what = format!("the value of label {key} cannot be used");
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because(format!(
                    "a value has at most {MAX_LABEL_VALUE} characters and no control characters"
                ))
                .fix(format!("give label {key} a value that meets these limits")));
        }
    }
    Ok(())
}
