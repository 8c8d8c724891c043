package erofs

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/thaw-project/thaw/internal/testenv"
)

// redirected is an image with about half of its chunks on second devices, and the devices: each has the bytes only of those
// chunks that are to be read from it.
func redirected(t testing.TB, b []byte, l layers) ([]byte, layers) {
	t.Helper()
	twice := make(layers, 2*len(l))
	for i := range l {
		twice[i], twice[len(l)+i] = bytes.Clone(l[i]), make([]byte, len(l[i]))
	}
	chosen, kept := 0, 0
	out, err := Redirect(b, func(e Extent) bool {
		if e.OffsetDevice>>blockBits%2 == 0 {
			kept++
			return false
		}
		chosen++
		end := min(e.OffsetDevice+roundUp(e.Length, blockSize), int64(len(l[e.Device-1])))
		from, to := twice[e.Device-1], twice[len(l)+int(e.Device)-1]
		copy(to[e.OffsetDevice:end], from[e.OffsetDevice:end])
		clear(from[e.OffsetDevice:end])
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	if chosen == 0 || kept == 0 {
		t.Fatalf("%d chunks chosen, %d not", chosen, kept)
	}
	return out, twice
}

// sameButDevices says how a redirected image is wrong, or another than it was but for its devices.
func sameButDevices(img *Image, out []byte) error {
	again, err := Open(out)
	if err == nil {
		err = again.Check()
	}
	if err != nil {
		return err
	}
	n := len(img.devices)
	if twice := append(slices.Clone(img.devices), img.devices...); !slices.Equal(again.devices, twice) {
		return fmt.Errorf("devices %v, want %v", again.devices, twice)
	}
	type fact struct {
		path string
		info Info
	}
	facts := func(img *Image) (all []fact, err error) {
		err = img.Walk(func(path string, in *Info) error {
			f := fact{path, Info{NID: in.NID, Nlink: in.Nlink, Inode: in.Inode}}
			f.info.Extents = nil
			for _, e := range in.Extents {
				e.Device = uint16((int(e.Device)-1)%max(n, 1) + 1)
				f.info.addExtent(e)
			}
			all = append(all, f)
			return nil
		})
		return all, err
	}
	before, err := facts(img)
	if err != nil {
		return err
	}
	after, err := facts(again)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(before, after) {
		return fmt.Errorf("other files:\n%+v\nwere\n%+v", after, before)
	}
	return nil
}

// TestRedirect: the image is the same but for its devices, each byte of which is found.
func TestRedirect(t *testing.T) {
	for seed := range uint64(20) {
		root, l := everything()
		if seed > 0 {
			root, l = randomTree(newRand(seed), 300)
		}
		before := mustWrite(t, root, l.devices())
		same := bytes.Clone(before)
		out, twice := redirected(t, before, l)
		if !bytes.Equal(before, same) {
			t.Fatal("the image itself was changed")
		}
		diffFacts(t, modelFacts(root, l), imageFacts(t, out, twice))
		img, err := Open(before)
		if err == nil {
			err = sameButDevices(img, out)
		}
		if err != nil {
			t.Fatal(err)
		}
		// Once more: inodes are not from the image's begin on now.
		if img, err = Open(out); err == nil {
			out, err = Redirect(out, func(e Extent) bool { return e.Offset == 0 })
		}
		if err == nil {
			err = sameButDevices(img, out)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKernelRedirect(t *testing.T) {
	testenv.NeedRoot(t)
	for seed := range uint64(5) {
		root, l := everything()
		if seed > 0 {
			root, l = randomTree(newRand(seed), 500)
		}
		out, twice := redirected(t, mustWrite(t, root, l.devices()), l)
		diffFacts(t, modelFacts(root, l), kernelFacts(t, mountImage(t, out, twice)))
	}
}

// TestChunksOfLargeFiles: parts of a file can be on the second device, and a chunk is no larger than that needs.
func TestChunksOfLargeFiles(t *testing.T) {
	for _, c := range []struct{ size, chunk int64 }{{1 << 10, 1 << 10}, {128 << 10, 128 << 10}, {129 << 10, 128 << 10}, {10 << 20, 128 << 10}, {64 << 30, 1 << 20}} {
		root := dir(Dirent{"f", &Inode{Mode: ModeRegular, SizeBytes: c.size, Extents: []Extent{{0, c.size, 1, 512}}}})
		b := mustWrite(t, root, []Device{{SizeBytes: c.size + 512}})
		chunks, sum := int64(0), int64(0)
		if _, err := Redirect(b, func(e Extent) bool {
			if e.Length > c.chunk {
				t.Errorf("chunk of %d bytes in a file of %d", e.Length, c.size)
			}
			chunks, sum = chunks+1, sum+e.Length
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if want := (c.size-1)/c.chunk + 1; chunks != want || sum != c.size {
			t.Errorf("file of %d bytes: %d chunks of %d bytes together, want %d", c.size, chunks, sum, want)
		}
	}
}

// TestRedirectRefuses: an image that is not as Write makes it is refused, not broken.
func TestRedirectRefuses(t *testing.T) {
	none := func(Extent) bool { return false }
	root := dir()
	for _, n := range []int{MaxDevices/2 + 1, MaxDevices} {
		if _, err := Redirect(mustWrite(t, root, make([]Device, n)), none); err == nil {
			t.Errorf("%d devices were doubled", n)
		}
	}
	if _, err := Redirect(mustWrite(t, root, make([]Device, MaxDevices/2)), none); err != nil {
		t.Error(err)
	}
	// An inode in what was the device table.
	b := mustWrite(t, root, make([]Device, 2))
	at := int64(superOffset + superSize)
	img, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[at:], b[int64(img.rootNID)*nidUnit:][:compactSize])
	le.PutUint16(b[superOffset+sbRootNID:], uint16(at/nidUnit))
	le.PutUint32(b[at+dsBlocks:], 0)
	fixChecksum(b)
	if _, err := Redirect(b, none); err == nil {
		t.Error("an inode in the device table was taken along")
	}
}

// TestRedirectOverlaps: what is changed for one structure would be another's.
func TestRedirectOverlaps(t *testing.T) {
	b := mustWrite(t, dir(Dirent{"long", symlink(strings.Repeat("l", 600))}, Dirent{"longer", symlink(strings.Repeat("l", 700))}), nil)
	img, err := Open(b)
	if err != nil {
		t.Fatal(err)
	}
	longer, err := img.Lookup("longer")
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]uint32{"of another link": longer.u, "before the tables": 0} {
		b := patch(t, b, "long", func(img, in []byte) {
			le.PutUint32(in[inU:], block)
			copy(img[int64(block)<<blockBits:], strings.Repeat("l", 600))
		})
		fixChecksum(b)
		img, err := Open(b)
		if err == nil {
			err = img.Check()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Redirect(b, func(Extent) bool { return true }); err == nil {
			t.Errorf("a link in the block %s was taken along", name)
		}
	}
}
