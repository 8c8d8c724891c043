package mounttest

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/mount"
	"github.com/thaw-project/thaw/internal/testenv"
)

// seenReads collects what a Mounter says it has seen.
type seenReads struct {
	mu   sync.Mutex
	pids map[int]bool
	have map[digest.Digest]map[int64]bool // bytes
}

func (s *seenReads) add(layer digest.Digest, off, n int64, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.have[layer] == nil {
		s.have[layer] = map[int64]bool{}
	}
	for i := range n {
		s.have[layer][off+i] = true
	}
	s.pids[pid] = true
}

// take checks that all of a file was seen, and that it was read by the process, and forgets it.
func (s *seenReads) take(t *testing.T, image *Image, name string, pid int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	layer, off := image.where(name)
	for i := range int64(len(image.Data(name))) {
		if !s.have[layer.Blob][off+i] {
			t.Errorf("byte %d of %s was read and not seen", i, name)
			break
		}
	}
	for blob, bytes := range s.have {
		for at := range bytes {
			if blob == layer.Blob && at >= int64(len(layer.Data)) {
				t.Errorf("byte %d of a layer of %d was seen", at, len(layer.Data))
				break
			}
		}
	}
	for seen := range s.pids {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, seen)); seen != pid && err != nil {
			t.Errorf("%s was read by process %d, seen was %d", name, pid, seen)
		}
	}
	if len(s.pids) == 0 {
		t.Errorf("read of %s was not seen", name)
	}
	clear(s.have)
	clear(s.pids)
}

// where is the layer of a file, and the file's offset in it.
func (i *Image) where(name string) (*Layer, int64) {
	offsets := make([]int64, len(i.Layers))
	for n, file := range i.Files {
		off := &offsets[n%len(i.Layers)]
		*off += 512
		if file.Name == name {
			return i.Layers[n%len(i.Layers)], *off
		}
		*off += (int64(len(file.Data)) + 511) &^ 511
	}
	return nil, 0
}

// RunSeen is what any Mounter does with Seen: it is told of every read that misses the kernel's cache, whether the bytes were there or not, by
// whichever process.
func RunSeen(t *testing.T, newMounter func(t *testing.T, h mount.Handler, seen mount.Seen) mount.Mounter) {
	testenv.NeedRoot(t)
	seen := &seenReads{have: map[digest.Digest]map[int64]bool{}, pids: map[int]bool{}}
	f := start(t, func(t *testing.T, h mount.Handler) mount.Mounter { return newMounter(t, h, seen.add) }, 2, Files(16))
	f.check(t, "f0007") // 200001 bytes
	seen.take(t, f.Image, "f0007", os.Getpid())
	cat := exec.Command("cat", f.path("f0006"))
	if err := cat.Run(); err != nil {
		t.Fatal(err)
	}
	seen.take(t, f.Image, "f0006", cat.Process.Pid)
	for _, l := range f.Layers {
		if err := l.Complete(); err != nil {
			t.Fatal(err)
		}
	}
	f.check(t, "f0014") // it is there
	seen.take(t, f.Image, "f0014", os.Getpid())
	dropCache(t, f.path("f0014"))
	f.check(t, "f0014")
	seen.take(t, f.Image, "f0014", os.Getpid())
}
