fleetward = Fleetward
login-title = Log in
login-user = Name
login-password = Password
login-send = Log in
logout = Log out
overview = Overview
vms = VMs
hosts = Hosts
jobs = Jobs
nothing-needed = Nothing needs you now.
needs-somebody = What needs somebody now
figures = The fleet
hosts-online = { $online } of { $hosts } hosts online
vms-count = { $n ->
    [one] { $n } VM
   *[other] { $n } VMs
}
jobs-running = { $n ->
    [one] { $n } job at work
   *[other] { $n } jobs at work
}
search = Search
name = Name
state = State
host = Host
group = Group
tpm = TPM
size = Size
job = Job
started = Started
step = Step
start = Start
stop = Stop
restart = Restart
force-stop = Switch off
screen = Screen
summary = Summary
ctrl-alt-del = Ctrl-Alt-Del
full-screen = Full screen
screen-lost = The screen is away. It is opened again when the VM is there.
lost = The controller is not reached. This page shows what was known before.
none-found = There is none.
yes = on
no = off
because = Because
fix = What helps
close = Close
confirm-stop = Stop { $name }?
confirm-force = Switch { $name } off? It is as if the power failed: what the guest has not written is lost, and its TPM counts a failed attempt.
cancel = Cancel
language = Language
theme = Appearance
theme-auto = as the system
theme-light = light
theme-dark = dark
skip = To the content
vm-count-shown = { $shown } of { $all } shown
state-running = running
state-stopped = stopped
state-paused = paused
state-unknown = unknown
state-migrating = moving
state-saved = stopped (saved)
state-online = online
state-unreachable = unreachable
state-drained = drained
state-invited = invited
state-undoing = undoing
state-done = done
state-failed = failed
last-seen = Last heard
warnings = Warnings
processors = { $n ->
    [one] { $n } processor
   *[other] { $n } processors
}
since = Since
being-read = Being read ...
state-pending = waiting
state-undone = undone
