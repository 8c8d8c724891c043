package powercut

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const sectorBytes = 512

// Log is a record.
type Log struct{ steps []step }

// Len is the number of steps, marks included.
func (l *Log) Len() int { return len(l.steps) }

// Crash is a directory as a power failure left it.
type Crash struct {
	Dir   string
	Marks []string // noted before it
	Steps int      // that had been done
}

// how says what of the steps that are not sure is there.
type how struct {
	name  string
	names bool       // all names, else none
	data  bool       // all bytes and times, else none
	sizes bool       // sizes and times without the bytes
	rng   *rand.Rand // all of the above at random
}

// Crashes calls check for each different directory that a power failure could
// leave: for each step of the record that none, all, only names, only bytes, or
// only names and sizes of what is not sure are there, and random times at random.
func (l *Log) Crashes(t *testing.T, random int, check func(t *testing.T, c Crash)) {
	t.Helper()
	seen := map[[32]byte]bool{}
	tmp := tempDir(t)
	states := 0
	for cut := range len(l.steps) + 1 {
		ways := []how{
			{name: "nothing"}, {name: "all", names: true, data: true}, {name: "names", names: true},
			{name: "bytes", data: true}, {name: "names and sizes", names: true, sizes: true},
		}
		for i := range random {
			ways = append(ways, how{name: fmt.Sprintf("random %d", i), rng: rand.New(rand.NewPCG(uint64(cut), uint64(i)))})
		}
		for _, way := range ways {
			img := l.crash(cut, way)
			if sum := img.sum(); seen[sum] {
				continue
			} else {
				seen[sum] = true
			}
			states++
			l.run(t, img, cut, way, tmp, check)
		}
	}
	t.Logf("%d steps, %d different states", len(l.steps), states)
}

// Some is Crashes for n steps after the first mark, taken at random, with random
// parts of what was not synced: for records with large files.
func (l *Log) Some(t *testing.T, n int, check func(t *testing.T, c Crash)) {
	t.Helper()
	first := slices.IndexFunc(l.steps, func(s step) bool { return s.op == opMark }) + 1
	tmp := tempDir(t)
	for i := range n {
		rng := rand.New(rand.NewPCG(uint64(i), 0))
		cut := first + rng.IntN(len(l.steps)-first+1)
		way := how{name: fmt.Sprintf("random %d", i), rng: rng}
		if i%4 == 0 {
			way = how{name: "all", names: true, data: true}
		}
		l.run(t, l.crash(cut, way), cut, way, tmp, check)
	}
	t.Logf("%d steps, %d states", len(l.steps), n)
}

func (l *Log) run(t *testing.T, img *image, cut int, way how, tmp string, check func(t *testing.T, c Crash)) {
	t.Helper()
	ok := t.Run(fmt.Sprintf("after %d, %s", cut, way.name), func(t *testing.T) {
		dir := filepath.Join(tmp, "crash")
		if err := img.write(dir); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		check(t, Crash{Dir: dir, Marks: img.marks, Steps: cut})
	})
	if !ok {
		t.Logf("the last steps before it:\n%s", l.describe(max(0, cut-12), cut))
		t.FailNow()
	}
}

// tempDir is in memory where there is such a thing: states are many and short-lived.
func tempDir(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "powercut-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

func (l *Log) describe(from, to int) string {
	out := ""
	for i, s := range l.steps[from:to] {
		out += fmt.Sprintf("%5d %-9s inode %d", from+i+1, s.op, s.inode)
		switch s.op {
		case opWrite:
			out += fmt.Sprintf(" %d bytes at %d", len(s.data), s.off)
		case opTruncate:
			out += fmt.Sprintf(" to %d", s.size)
		case opLink, opUnlink:
			out += fmt.Sprintf(" %q in %d", s.name, s.dir)
		case opRename:
			out += fmt.Sprintf(" %q in %d to %q in %d", s.name, s.dir, s.to, s.toDir)
		case opMark:
			out += " " + s.mark
		}
		out += "\n"
	}
	return out
}

// disk is an inode as it is on disk after the crash.
type disk struct {
	names map[string]int // nil: a file
	data  []byte
	mtime time.Time
}

// image is all that is on disk after the crash.
type image struct {
	inodes map[int]*disk
	marks  []string
}

// crash applies the first steps of the record: those that were synced, and of
// the others what how says.
func (l *Log) crash(cut int, h how) *image {
	img := &image{inodes: map[int]*disk{0: {names: map[string]int{}}}}
	sure := l.sure(cut)
	lost := map[int]bool{} // directories that keep no further change of names
	for i, s := range l.steps[:cut] {
		switch s.op {
		case opMark:
			img.marks = append(img.marks, s.mark)
		case opLink, opRename, opUnlink:
			if s.op == opLink {
				d := &disk{mtime: s.mtime}
				if s.isDir {
					d.names = map[string]int{}
				}
				img.inodes[s.inode] = d
			}
			if sure[i] || h.keepNames(lost, s) {
				img.name(s)
			}
		case opWrite, opTruncate, opTimes:
			img.inodes[s.inode].apply(s, sure[i], h)
		case opSync:
			if d := img.inodes[s.inode]; d.names == nil && !s.mtime.IsZero() {
				d.mtime = s.mtime
			}
		}
	}
	return img
}

// sure tells which of the first steps a sync among them covers.
func (l *Log) sure(cut int) []bool {
	sure := make([]bool, cut)
	for i, s := range l.steps[:cut] {
		if s.op != opSync && s.op != opDataSync {
			continue
		}
		for j, p := range l.steps[:i] {
			switch p.op {
			case opLink, opUnlink:
				sure[j] = sure[j] || p.dir == s.inode
			case opRename:
				sure[j] = sure[j] || p.dir == s.inode || p.toDir == s.inode
			case opWrite, opTruncate:
				sure[j] = sure[j] || p.inode == s.inode
			case opTimes:
				sure[j] = sure[j] || p.inode == s.inode && s.op == opSync
			}
		}
	}
	return sure
}

// keepNames decides on a change of names that is not sure. At random a directory
// keeps what was done to it up to some point, or each with even odds.
func (h how) keepNames(lost map[int]bool, s step) bool {
	if h.rng == nil {
		return h.names
	}
	if h.rng.IntN(4) == 0 {
		lost[s.dir] = true
	}
	return !lost[s.dir] || h.rng.IntN(2) == 0
}

// name changes a name. One that is there without what came before it (a rename
// whose source was never sure) is there all the same.
func (img *image) name(s step) {
	dir := img.inodes[s.dir]
	switch s.op {
	case opLink:
		dir.names[s.name] = s.inode
	case opUnlink:
		if id, ok := dir.names[s.name]; ok && id == s.inode {
			delete(dir.names, s.name)
		}
	case opRename:
		if id, ok := dir.names[s.name]; ok && id == s.inode {
			delete(dir.names, s.name)
		}
		img.inodes[s.toDir].names[s.to] = s.inode
	}
}

func (d *disk) apply(s step, sure bool, h how) {
	bytes, size, times := h.data, h.data || h.sizes, h.data || h.sizes
	if h.rng != nil {
		bytes, size, times = h.rng.IntN(3) > 0, h.rng.IntN(2) == 0, h.rng.IntN(2) == 0
	}
	if sure {
		bytes, size = true, true
	}
	switch s.op {
	case opWrite:
		end := s.off + int64(len(s.data))
		if (bytes || size) && int64(len(d.data)) < end {
			d.data = append(d.data, make([]byte, end-int64(len(d.data)))...)
		}
		if bytes {
			for at := 0; at < len(s.data); at += sectorBytes {
				if sure || h.rng == nil || h.rng.IntN(2) == 0 {
					copy(d.data[s.off+int64(at):], s.data[at:min(len(s.data), at+sectorBytes)])
				}
			}
		}
	case opTruncate:
		if size {
			if n := int64(len(d.data)); s.size <= n {
				d.data = d.data[:s.size:s.size]
			} else {
				d.data = append(d.data, make([]byte, s.size-n)...)
			}
		}
	}
	if times || s.op == opTimes && sure {
		d.mtime = s.mtime
	}
}

func (img *image) sum() [32]byte {
	h := sha256.New()
	var walk func(id int)
	walk = func(id int) {
		d := img.inodes[id]
		if d.names == nil {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(d.data))))
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(d.mtime.UnixNano())))
			h.Write(d.data)
			return
		}
		for _, name := range slices.Sorted(maps.Keys(d.names)) {
			fmt.Fprintf(h, "%q", name)
			walk(d.names[name])
		}
		h.Write([]byte{0})
	}
	walk(0)
	fmt.Fprintf(h, "%q", img.marks)
	return [32]byte(h.Sum(nil))
}

// write makes the directory.
func (img *image) write(dir string) error { return img.writeInode(dir, 0) }

func (img *image) writeInode(path string, id int) error {
	d := img.inodes[id]
	if d.names == nil {
		if err := os.WriteFile(path, d.data, 0o600); err != nil {
			return err
		}
		return os.Chtimes(path, d.mtime, d.mtime)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	for name, kid := range d.names {
		if err := img.writeInode(filepath.Join(path, name), kid); err != nil {
			return err
		}
	}
	return nil
}
