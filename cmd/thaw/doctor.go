package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/config"
	"github.com/thaw-project/thaw/internal/container"
	"github.com/thaw-project/thaw/internal/daemon"
	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/measure"
	"github.com/thaw-project/thaw/internal/mount/fanotify"
	"github.com/thaw-project/thaw/internal/mount/fuse"
	"github.com/thaw-project/thaw/internal/profile"
)

// check is one thing that doctor looked at.
type check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warning, missing
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

const (
	stateOK      = "ok"
	stateWarning = "warning"
	stateMissing = "missing"
)

// diagnosis is what doctor found.
type diagnosis struct {
	Mount  string  `json:"mount"`            // mount path that is used
	Reason string  `json:"reason,omitempty"` // why not a better one
	Checks []check `json:"checks"`
}

func newDoctorCommand(g *globalOptions) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can do, which mount path is used, and why not a better one",
		Long: `Say what this machine can do. The mount path is tried out: a file is marked, mounted
and read, in the state directory.

Exit codes: 0 images can be run (perhaps not lazily), 1 they cannot.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := g.load()
			if err != nil {
				return err
			}
			d := diagnose(cmd.Context(), cfg)
			if asJSON {
				err = printJSON(cmd, d)
			} else {
				err = d.print(cmd.OutOrStdout())
			}
			for _, c := range d.Checks {
				if c.State == stateMissing && err == nil {
					err = &exitError{code: exitFailed}
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func diagnose(ctx context.Context, cfg config.Config) *diagnosis {
	root := cfg.Root
	d := &diagnosis{Mount: api.ModeFanotify}
	add := func(name, state, detail, hint string) {
		d.Checks = append(d.Checks, check{name, state, detail, hint})
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		add("kernel", stateOK, unix.ByteSliceToString(uts.Release[:]), "")
	}
	if os.Geteuid() != 0 {
		add("root", stateMissing, "not running as root", "use sudo: mounts and containers need it")
	} else {
		add("root", stateOK, "running as root", "")
	}
	existing, fsType := stateDirectory(root)
	free := ""
	var st unix.Statfs_t
	if unix.Statfs(existing, &st) == nil {
		free = fmt.Sprintf(", %s free", units.HumanSize(float64(st.Bavail)*float64(st.Bsize)))
	}
	add("state directory", stateOK, root+" on "+fsType+free, "")
	d.checkRoom(&st, cfg.Cache, add)
	if os.Geteuid() == 0 {
		d.probe(ctx, root, add)
	} else {
		d.Mount, d.Reason = "unknown", "only root can try it out"
	}
	if name, err := container.FindRuntime(""); err != nil {
		add("OCI runtime", stateMissing, err.Error(), "install runc or crun")
	} else {
		add("OCI runtime", stateOK, name, "")
	}
	add("cgroups", stateOK, cgroupKind()+slowMoves("/proc/self/mountinfo"), "")
	if os.Geteuid() == 0 {
		checkMeasuring(existing, add)
	}
	return d
}

// checkMeasuring says what thaw measure can see here. It does without what is missing.
func checkMeasuring(dir string, add func(name, state, detail, hint string)) {
	what := map[string]string{profile.SignalOpens: "which files a container opens (fanotify)", profile.SignalTracefs: "when it is executed, listens and accepts (tracefs)",
		profile.SignalProc: "when it listens (/proc)"}
	for _, s := range measure.Signals(dir) {
		detail := what[s.Name]
		switch {
		case s.Used && s.Reason == "":
			add("measure: "+s.Name, stateOK, detail, "")
		case s.Name != profile.SignalProc:
			add("measure: "+s.Name, stateWarning, "not seen: "+detail+": "+s.Reason, "thaw measure does without, and phases that need it are unknown or less exact")
		}
	}
}

// checkRoom compares the disk with the limits of the configuration.
func (d *diagnosis) checkRoom(st *unix.Statfs_t, c config.Cache, add func(name, state, detail, hint string)) {
	size, free := int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	limit, keep := "no limit", max(c.MinFree.Of(size), daemon.MinFreeBytes)
	if n := c.MaxSize.Of(size); n > 0 {
		limit = "at most " + units.HumanSize(float64(n))
	}
	detail := fmt.Sprintf("layers: %s; %s are kept free", limit, units.HumanSize(float64(keep)))
	if free < keep {
		add("cache", stateWarning, detail+", and there are "+units.HumanSize(float64(free)), "make room on the disk: until then there is no background hydration")
		return
	}
	add("cache", stateOK, detail, "")
}

// probe tries the lazy mount out in the state directory.
func (d *diagnosis) probe(ctx context.Context, root string, add func(name, state, detail, hint string)) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		add("fanotify mount path", stateMissing, err.Error(), "choose another state directory with --root")
		return
	}
	fanotifyErr, fuseErr := fanotify.Probe(ctx, root), fuse.Probe(ctx, root)
	if fanotifyErr != nil {
		d.Mount, d.Reason = api.ModeFUSE, "fanotify: "+fanotifyErr.Error()
		add("fanotify mount path", stateWarning, fanotifyErr.Error(),
			"it needs Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS and file-backed EROFS, and a state directory on ext4, xfs or btrfs; until then FUSE is used")
	} else {
		add("fanotify mount path", stateOK, "mounted, read, and saw the read", "")
	}
	if fuseErr == nil {
		add("FUSE mount path", stateOK, "mounted, read, and saw the read", "")
		return
	}
	hint := "it is the fallback, and needs /dev/fuse and Linux 6.12 with file-backed EROFS"
	if fanotifyErr != nil {
		d.Mount, d.Reason = api.ModeEager, d.Reason+"; fuse: "+fuseErr.Error()
		hint += "; without both, images are brought whole before they start"
	}
	add("FUSE mount path", stateWarning, fuseErr.Error(), hint)
}

// stateDirectory returns the nearest directory of root that exists, and the
// type of the file system it is on.
func stateDirectory(root string) (dir, fsType string) {
	dir = filepath.Clean(root)
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return dir, err.Error()
	}
	names := map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "nfs"}
	if name, ok := names[st.Type]; ok {
		return dir, name
	}
	return dir, fmt.Sprintf("file system 0x%x", st.Type)
}

func cgroupKind() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "version 2"
	}
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil || len(entries) == 0 {
		return "none mounted"
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.controllers"); err == nil {
		return "version 1 and 2 (hybrid)"
	}
	return "version 1"
}

// slowMoves says so if moving a process into a container's cgroup waits for a grace
// period of the kernel's, about 10 ms of each container's creation.
func slowMoves(mountinfo string) string {
	b, err := os.ReadFile(mountinfo)
	if err != nil || !strings.Contains(string(b), " - cgroup") || strings.Contains(string(b), "favordynmods") {
		return ""
	}
	return "; mounted with favordynmods containers would be created some 10 ms sooner (forks get a little slower; Linux 6.18 undoes it only by a restart)"
}

func (d *diagnosis) print(w io.Writer) error {
	for _, c := range d.Checks {
		fmt.Fprintf(w, "%-8s %-20s %s\n", c.State, c.Name, c.Detail)
		if c.Hint != "" && c.State != stateOK {
			fmt.Fprintf(w, "%-8s %-20s   -> %s\n", "", "", c.Hint)
		}
	}
	fmt.Fprintf(w, "\nmount path: %s\n", d.Mount)
	if d.Reason != "" {
		fmt.Fprintf(w, "because: %s\n", d.Reason)
	}
	return nil
}
