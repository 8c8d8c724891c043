package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// envChaosReader makes the test binary a reader of the chaos test: a process of its own, since a goroutine in a page
// fault that nobody answers holds up the garbage collector, and with it whatever should answer.
const envChaosReader = "THAW_TEST_CHAOS_READER"

// chaosOp asks a reader to read something of a mount and compare it with the unpacked image.
type chaosOp struct {
	Kind  string // of chaosKinds
	Dir   string // the mount
	Truth string // the unpacked image
	Seed  uint64
}

// chaosAnswer is what came of it.
type chaosAnswer struct {
	Name    string // what was read
	Reads   int64
	Bytes   int64
	Zeros   int64 // bytes that should not have been 0
	Wrong   string
	Err     string
	Longest time.Duration
}

// chaosKinds are the ways in which readers read.
var chaosKinds = []string{"read", "pread", "mmap", "exec", "sendfile", "walk"}

// chaosReader reads what its standard input asks for, until that ends.
func chaosReader() {
	runtime.GOMAXPROCS(2)
	debug.SetPanicOnFault(true)
	r := &chaosReading{files: map[string][]string{}}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var op chaosOp
		if err := in.Decode(&op); err != nil {
			return
		}
		if err := out.Encode(r.do(op)); err != nil {
			return
		}
	}
}

// chaosReading is one operation after the other.
type chaosReading struct {
	chaosOp
	files  map[string][]string // of an unpacked image: names of files with bytes
	rng    *rand.Rand
	answer chaosAnswer
}

func (r *chaosReading) do(op chaosOp) chaosAnswer {
	r.chaosOp, r.answer = op, chaosAnswer{}
	r.rng = rand.New(rand.NewPCG(op.Seed, 0))
	err := r.list()
	if err == nil {
		err = map[string]func() error{"read": r.read, "pread": r.pread, "mmap": r.mmap, "exec": r.exec, "sendfile": r.sendfile, "walk": r.walk}[op.Kind]()
	}
	if err != nil {
		r.answer.Err = err.Error()
	}
	return r.answer
}

func (r *chaosReading) list() error {
	if r.files[r.Truth] != nil {
		return nil
	}
	return filepath.WalkDir(r.Truth, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 {
			r.files[r.Truth] = append(r.files[r.Truth], strings.TrimPrefix(path, r.Truth))
		}
		return nil
	})
}

// open opens a file of the mount and the same one of the truth.
func (r *chaosReading) open() (got, want *os.File, size int64, err error) {
	files := r.files[r.Truth]
	r.answer.Name = files[r.rng.IntN(len(files))]
	if want, err = os.Open(r.Truth + r.answer.Name); err != nil {
		return nil, nil, 0, fmt.Errorf("truth: %w", err)
	}
	info, err := want.Stat()
	if err == nil {
		got, err = os.Open(r.Dir + r.answer.Name)
	}
	if err != nil {
		want.Close()
		return nil, nil, 0, err
	}
	return got, want, info.Size(), nil
}

// closeBoth lets the kernel forget the mount's pages, so that the next reader reads again.
func closeBoth(got, want *os.File) {
	_ = unix.Fadvise(int(got.Fd()), 0, 0, unix.FADV_DONTNEED)
	got.Close()
	want.Close()
}

// timed measures what may have to wait.
func (r *chaosReading) timed(read func() error) error {
	begun := time.Now()
	err := read()
	r.answer.Longest = max(r.answer.Longest, time.Since(begun))
	r.answer.Reads++
	return err
}

// compare holds bytes of the file against the truth.
func (r *chaosReading) compare(got []byte, want *os.File, off int64) error {
	truth := make([]byte, len(got))
	if _, err := want.ReadAt(truth, off); err != nil {
		return fmt.Errorf("truth: %w", err)
	}
	r.answer.Bytes += int64(len(got))
	if bytes.Equal(got, truth) {
		return nil
	}
	zeros, differ, first := int64(0), 0, -1
	for i := range got {
		if got[i] == truth[i] {
			continue
		}
		if first < 0 {
			first = i
		}
		differ++
		if got[i] == 0 {
			zeros++
		}
	}
	r.answer.Zeros += zeros
	if zeros < int64(differ) || r.answer.Wrong == "" {
		r.answer.Wrong = fmt.Sprintf("%s: %d bytes at %d: %d differ from %d on, %d of them are 0", r.answer.Name, len(got), off, differ, off+int64(first), zeros)
	}
	return nil
}

func (r *chaosReading) read() error {
	got, want, size, err := r.open()
	if err != nil {
		return err
	}
	defer closeBoth(got, want)
	b := make([]byte, 4096<<r.rng.IntN(9))
	off := int64(0)
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); { // of a huge file the beginning
		var n int
		err := r.timed(func() (err error) { n, err = got.Read(b); return err })
		if err == io.EOF {
			if off != size {
				r.answer.Wrong = fmt.Sprintf("%s: ends at %d, not %d", r.answer.Name, off, size)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.compare(b[:n], want, off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

func (r *chaosReading) pread() error {
	for range 8 {
		if err := r.preadOne(); err != nil {
			return err
		}
	}
	return nil
}

func (r *chaosReading) preadOne() error {
	got, want, size, err := r.open()
	if err != nil {
		return err
	}
	defer closeBoth(got, want)
	for range 8 {
		off := r.rng.Int64N(size)
		b := make([]byte, min(1+r.rng.Int64N(256<<10), size-off))
		if err := r.timed(func() error { _, err := got.ReadAt(b, off); return err }); err != nil {
			return err
		}
		if err := r.compare(b, want, off); err != nil {
			return err
		}
	}
	return nil
}

func (r *chaosReading) mmap() (err error) {
	got, want, size, err := r.open()
	if err != nil {
		return err
	}
	defer closeBoth(got, want)
	mem, err := unix.Mmap(int(got.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("page fault: %w: %v", unix.EIO, fault)
		}
	}()
	for range 64 {
		off := r.rng.Int64N(size)
		b := make([]byte, min(1+r.rng.Int64N(32<<10), size-off))
		if err := r.timed(func() error { copy(b, mem[off:]); return nil }); err != nil {
			return err
		}
		if err := r.compare(b, want, off); err != nil {
			return err
		}
	}
	return nil
}

// perlSum is a sha256sum that uses modules of the image, and does not take an error for the end, as shasum(1) does.
const perlSum = `use Digest::SHA; open(my $f, "<:raw", $ARGV[0]) or die "$!"; my $d = Digest::SHA->new(256);
while (1) { my $n = sysread($f, my $b, 65536); die "$!" unless defined $n; last unless $n; $d->add($b) }
print $d->hexdigest, " "`

// exec has a program of the image read a file of the image.
func (r *chaosReading) exec() error {
	got, want, _, err := r.open()
	if err != nil {
		return err
	}
	defer closeBoth(got, want)
	h := sha256.New()
	size, err := io.Copy(h, want)
	if err != nil {
		return fmt.Errorf("truth: %w", err)
	}
	cmd := exec.Command("/usr/bin/sha256sum", "-b", r.answer.Name)
	if r.rng.IntN(2) == 0 {
		cmd = exec.Command("/usr/bin/perl", "-", r.answer.Name)
		cmd.Stdin = strings.NewReader(perlSum)
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: r.Dir}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := r.timed(cmd.Run); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Path, err, strings.ToLower(stderr.String()))
	}
	r.answer.Bytes += size
	if sum, _, _ := strings.Cut(strings.TrimPrefix(stdout.String(), "\\"), " "); sum != hex.EncodeToString(h.Sum(nil)) {
		r.answer.Wrong = fmt.Sprintf("%s: %s prints %q, want %x", r.answer.Name, cmd.Path, stdout.String(), h.Sum(nil))
	}
	return nil
}

func (r *chaosReading) sendfile() error {
	got, want, size, err := r.open()
	if err != nil {
		return err
	}
	defer closeBoth(got, want)
	fd, err := unix.MemfdCreate("chaos", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), "chaos")
	defer to.Close()
	size = min(size, 16<<20)
	for off := int64(0); off < size; {
		var n int
		if err := r.timed(func() (err error) {
			from := off
			n, err = unix.Sendfile(fd, int(got.Fd()), &from, int(min(size-off, 1<<20)))
			return err
		}); err != nil {
			return err
		}
		if n == 0 {
			r.answer.Wrong = fmt.Sprintf("%s: sendfile ends at %d, not %d", r.answer.Name, off, size)
			return nil
		}
		b := make([]byte, n)
		if _, err := to.ReadAt(b, off); err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		if err := r.compare(b, want, off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// walk compares names, modes, times, extended attributes, everything but bytes, of a part of the tree.
func (r *chaosReading) walk() error {
	files := r.files[r.Truth]
	top := files[r.rng.IntN(len(files))]
	for n := r.rng.IntN(3); n > 0 || strings.Count(top, "/") > 4; n-- {
		top = filepath.Dir(top)
	}
	r.answer.Name = top
	names := 0
	return filepath.WalkDir(filepath.Clean(r.Truth+top), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		if names++; names > 2000 {
			return fs.SkipAll
		}
		name := strings.TrimPrefix(path, r.Truth)
		if name == "" {
			return nil // the root has no entry in a layer
		}
		want, _, err := readFact(path)
		if err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		var got fact
		if err := r.timed(func() (err error) { got, _, err = readFact(r.Dir + name); return err }); err != nil {
			return err
		}
		if d := cmp.Diff(want, got); d != "" {
			r.answer.Wrong = fmt.Sprintf("%s (- unpacked, + mounted):\n%s", name, d)
		}
		if !d.IsDir() {
			return nil
		}
		there, err := os.ReadDir(r.Dir + name)
		if err != nil {
			return err
		}
		truth, err := os.ReadDir(path)
		if err != nil {
			return fmt.Errorf("truth: %w", err)
		}
		if len(there) != len(truth) {
			return errors.Join(errDirectory, fmt.Errorf("%s: %d names, want %d", name, len(there), len(truth)))
		}
		return nil
	})
}

// errDirectory is the wrong number of names in a directory, as when it is not mounted.
var errDirectory = errors.New("directory")
