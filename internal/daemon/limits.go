package daemon

import (
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/index"
)

// What one daemon can have. Its descriptors are what runs out first: the group's
// numbers are swept up to 64Ki (decision 8), of which an event under way takes one
// too. The kernel's other limits are far: 100000 mounts (fs.mount-max), no limit of
// marks for who is root.
const (
	maxMounts = 4096 // each has a process to wait for and a call's connection
	// layerFiles is what a layer in use takes: its file, and the duplicates of its
	// watch and of the keeper's client. TestManyLayers counts them.
	layerFiles = 3
	// otherFiles are for events, mounts, connections, and what is open for a moment.
	otherFiles = 16 << 10
)

// checkLimits refuses a mount that the daemon has no room for.
func (d *Daemon) checkLimits(head *index.Image) error {
	const hint = "end containers or unmount what is not needed, or run another daemon with another --root"
	d.mu.Lock()
	mounts := len(d.mounts) + len(d.making) // it is one of those
	d.mu.Unlock()
	if mounts > maxMounts {
		return api.Errorf(api.CodeLimit, hint, "there are %d mounts, and one daemon can have %d", mounts-1, maxMounts)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil // the kernel will say so
	}
	return checkLayers(len(d.layers.list()), len(head.Layers), int64(files.Cur))
}

// checkLayers refuses to take more layers into use than there are descriptors for.
func checkLayers(used, more int, files int64) error {
	most := max((files-min(otherFiles, files/4))/layerFiles, 0)
	if int64(used+more) <= most {
		return nil
	}
	return api.Errorf(api.CodeLimit, "end containers or unmount what is not needed; the limit follows from that of open files (ulimit -n), 65536 at most",
		"%d layers are in use, the image has %d, and with %d open files a daemon can have %d", used, more, files, most)
}
