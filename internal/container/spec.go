package container

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// specVersion is one that runc 1.1 and crun 1.8 accept; nothing later is used.
	specVersion = "1.0.2"
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	cpuPeriodUs = 100_000

	noFileSoft = 1024 // what select(2) still works with; a program may raise it
	noFileHard = 524288
)

// Docker's defaults.
// https://docs.docker.com/engine/containers/run/#runtime-privilege-and-linux-capabilities
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// What tells of, or changes, the machine.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Spec returns the runtime's configuration of a container. It reads the user
// from the root file system, which must be mounted.
func Spec(opts Options) (*specs.Spec, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	args := Command(opts.Config, opts.Entrypoint, opts.Args)
	if len(args) == 0 {
		return nil, fmt.Errorf("container %s has no command: the image names none and none is given", opts.ID)
	}
	account, home, err := resolveUser(opts.Rootfs, cmp.Or(opts.User, opts.Config.User))
	if err != nil {
		return nil, err
	}
	workDir := path.Clean("/" + cmp.Or(opts.WorkDir, opts.Config.WorkingDir))
	mounts, err := specMounts(opts)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: specVersion,
		Process: &specs.Process{
			Terminal:     opts.TTY,
			User:         account,
			Args:         args,
			Env:          environment(opts, home),
			Cwd:          workDir,
			Capabilities: specCapabilities(account.UID),
			Rlimits:      rlimits(),
		},
		Root:     &specs.Root{Path: opts.Rootfs, Readonly: opts.ReadOnly},
		Hostname: hostname(opts),
		Mounts:   mounts,
		Linux: &specs.Linux{
			Namespaces:    namespaces(opts.Network),
			CgroupsPath:   Cgroup(opts.ID, opts.Bundle),
			Resources:     resources(opts),
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	p, err := dockerProfile()
	if err != nil {
		return nil, err
	}
	spec.Linux.Seccomp = p.linux
	return spec, nil
}

// Command is what runs in a container: the image's command with what the user
// put in the place of its parts, as in Options.
func Command(config v1.ImageConfig, entrypoint, args []string) []string {
	if entrypoint == nil {
		entrypoint = config.Entrypoint
		if args == nil {
			args = config.Cmd
		}
	}
	return slices.Concat(entrypoint, args)
}

func hostname(opts Options) string {
	if opts.Hostname != "" {
		return opts.Hostname
	}
	name, err := os.Hostname()
	if err != nil {
		return opts.ID
	}
	return name
}

// environment is the defaults, the image's and the user's; of a name given
// twice the later one holds.
func environment(opts Options, home string) []string {
	env := []string{defaultPath, "HOSTNAME=" + hostname(opts), "HOME=" + home}
	if opts.TTY {
		env = append(env, "TERM=xterm")
	}
	env = append(env, opts.Config.Env...)
	for _, kv := range opts.Env {
		if !strings.Contains(kv, "=") {
			value, ok := os.LookupEnv(kv)
			if !ok {
				continue
			}
			kv += "=" + value
		}
		env = append(env, kv)
	}
	at := map[string]int{}
	var out []string
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		if i, ok := at[key]; ok {
			out[i] = kv
			continue
		}
		at[key] = len(out)
		out = append(out, kv)
	}
	return out
}

// specCapabilities bounds everybody, and gives them to root only: others gain
// them through file capabilities and setuid.
func specCapabilities(uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: capabilities}
	if uid == 0 {
		c.Effective, c.Permitted = capabilities, capabilities
	}
	return c
}

func rlimits() []specs.POSIXRlimit {
	hard := uint64(noFileHard)
	var have unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &have) == nil {
		hard = min(hard, have.Max)
	}
	return []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: min(noFileSoft, hard), Hard: hard}}
}

func namespaces(network string) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
	}
	if network == NetworkNone {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	// With version 1 a cgroup namespace hides the mount points that are bound.
	if unifiedCgroups() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// unifiedCgroups reports whether the machine has cgroup v2 only.
func unifiedCgroups() bool {
	var st unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func resources(opts Options) *specs.LinuxResources {
	r := &specs.LinuxResources{
		// The runtimes add the devices that every container may use.
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
	}
	if opts.MemoryBytes > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &opts.MemoryBytes}
	}
	if opts.CPUs > 0 {
		period := uint64(cpuPeriodUs)
		quota := max(int64(opts.CPUs*cpuPeriodUs), 1000) // the kernel's least is 1 ms
		r.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	return r
}

// specMounts returns the mounts every container has, the network's files that
// writeBundle makes, and the user's.
func specMounts(opts Options) ([]specs.Mount, error) {
	hardened := []string{"nosuid", "noexec", "nodev"}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: hardened},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append(slices.Clone(hardened), "ro")},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append(slices.Clone(hardened), "relatime", "ro")},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: hardened},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(slices.Clone(hardened), "mode=1777", "size=65536k")},
	}
	taken := map[string]bool{}
	var own []specs.Mount
	for _, m := range opts.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
			return nil, fmt.Errorf("mount %s: target %q is not an absolute path below the root", m.Source, m.Target)
		}
		source, err := filepath.Abs(m.Source)
		if err != nil {
			return nil, err
		}
		if _, err := os.Stat(source); err != nil {
			return nil, fmt.Errorf("mount %s at %s: %w", m.Source, m.Target, err)
		}
		options := []string{"rbind", "rprivate", "rw"}
		if m.ReadOnly {
			options[2] = "ro"
		}
		taken[path.Clean(m.Target)] = true
		own = append(own, specs.Mount{Destination: path.Clean(m.Target), Type: "bind", Source: source, Options: options})
	}
	for _, name := range networkFiles {
		if target := "/etc/" + name; !taken[target] {
			mounts = append(mounts, specs.Mount{
				Destination: target, Type: "bind", Source: filepath.Join(opts.Bundle, name), Options: []string{"rbind", "rprivate"},
			})
		}
	}
	mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool { return taken[m.Destination] })
	return append(mounts, own...), nil
}

// networkFiles are made for each container, in its bundle, and seen in its /etc.
var networkFiles = []string{"hosts", "hostname", "resolv.conf"}

// writeBundle writes the runtime's configuration and the network's files.
func writeBundle(opts Options, spec *specs.Spec) error {
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"config.json": config,
		"hostname":    []byte(spec.Hostname + "\n"),
		"hosts":       []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"),
		"resolv.conf": nil,
	}
	if opts.Network != NetworkNone {
		for _, name := range []string{"hosts", "resolv.conf"} {
			if b, err := os.ReadFile("/etc/" + name); err == nil {
				files[name] = b
			}
		}
	}
	if !bytes.Contains(files["hosts"], []byte(spec.Hostname)) {
		files["hosts"] = fmt.Appendf(files["hosts"], "127.0.1.1\t%s\n", spec.Hostname)
	}
	for name, content := range files {
		mode := os.FileMode(0o644) // every user of the container reads them
		if name == "config.json" {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(opts.Bundle, name), content, mode); err != nil {
			return err
		}
	}
	return nil
}
