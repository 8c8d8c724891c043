package profilestore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// bbolt believes what its pages say: one that is said to run on for four thousand
// million pages makes it free each of them, until memory is used up, and a page that
// is both free and in use will be overwritten. So the pages are looked at first, when
// the file is locked: a millisecond for a thousand records. Keys and values are not.
//
// The layout is that of go.etcd.io/bbolt/internal/common: integers in the machine's
// order, pages of a header (id 8 bytes, flags 2, count 2, overflow 4) and elements.
const (
	metaMagic     = 0xED0CDAED
	headerBytes   = 16
	elementBytes  = 16
	flagBranch    = 0x01
	flagLeaf      = 0x02
	flagFreelist  = 0x10
	elementBucket = 0x01
	noFreelist    = ^uint64(0)
	minPage       = 1 << 10
	maxPage       = 64 << 10
)

// meta is what of bbolt's meta pages matters here.
type meta struct {
	pageBytes                 int64
	root, freelist, end, txid uint64
}

// errUnsound is of a file that bbolt must not be given.
var errUnsound = errors.New("its pages contradict each other")

func unsound(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUnsound, fmt.Sprintf(format, args...))
}

// walker goes through all pages of a file that are in use.
type walker struct {
	f    *os.File
	meta meta
	used []bool // by number
}

// checkSound returns an error for a file whose pages are not a tree with a list of free
// ones beside it. An empty file is sound.
func checkSound(f *os.File) error {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return err
	}
	m, ok := readMeta(f)
	if !ok {
		return unsound("it has no valid meta page")
	}
	if m.end < 4 || m.end > uint64(info.Size()/m.pageBytes) {
		return unsound("%d pages in %d bytes", m.end, info.Size())
	}
	w := walker{f, m, make([]bool, m.end)}
	w.used[0], w.used[1] = true, true
	if err := w.tree(m.root); err != nil {
		return err
	}
	return w.free()
}

// readMeta returns the newer of the two meta pages that are valid.
func readMeta(f *os.File) (newest meta, ok bool) {
	b := make([]byte, 64)
	try := func(at int64) {
		if _, err := f.ReadAt(b, at+headerBytes); err != nil {
			return
		}
		sum := fnv.New64a()
		sum.Write(b[:56])
		u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
		m := meta{int64(u32(b[8:])), u64(b[16:]), u64(b[32:]), u64(b[40:]), u64(b[48:])}
		if u32(b) != metaMagic || u32(b[4:]) != 2 || u64(b[56:]) != sum.Sum64() || m.pageBytes < minPage || m.pageBytes > maxPage || at != 0 && at != m.pageBytes {
			return
		}
		if !ok || m.txid > newest.txid {
			newest, ok = m, true
		}
	}
	try(0)
	for size := int64(minPage); size <= maxPage; size *= 2 {
		try(size)
	}
	return newest, ok
}

// run checks the header of a page and takes it, and those that it runs on for, as used.
func (w *walker) run(id uint64) (flags, count int, length int64, err error) {
	var h [headerBytes]byte
	if id < 2 || id >= w.meta.end {
		return 0, 0, 0, unsound("there is no page %d of %d", id, w.meta.end)
	}
	if _, err := w.f.ReadAt(h[:], int64(id)*w.meta.pageBytes); err != nil {
		return 0, 0, 0, fmt.Errorf("read page %d: %w", id, err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(h[12:]))
	if got := binary.NativeEndian.Uint64(h[:]); got != id || overflow >= w.meta.end-id {
		return 0, 0, 0, unsound("page %d says that it is %d, and runs on for %d of %d", id, got, overflow, w.meta.end)
	}
	for i := id; i <= id+overflow; i++ {
		if w.used[i] {
			return 0, 0, 0, unsound("page %d is used twice", i)
		}
		w.used[i] = true
	}
	return int(binary.NativeEndian.Uint16(h[8:])), int(binary.NativeEndian.Uint16(h[10:])), int64(overflow+1) * w.meta.pageBytes, nil
}

// tree goes through a bucket's pages, and those of buckets in it.
func (w *walker) tree(root uint64) error {
	for todo := []uint64{root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		flags, count, length, err := w.run(id)
		if err != nil {
			return err
		}
		more, err := w.elements(int64(id)*w.meta.pageBytes, flags, count, length, id == root)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		todo = append(todo, more...)
	}
	return nil
}

// elements checks those of a page of a tree at an offset of the file, and returns the
// pages that it names.
func (w *walker) elements(at int64, flags, count int, length int64, root bool) (pages []uint64, err error) {
	table := int64(headerBytes + count*elementBytes)
	if flags != flagBranch && flags != flagLeaf || table > length || count == 0 && !(root && flags == flagLeaf) {
		return nil, unsound("%d elements with flags %#x", count, flags)
	}
	b := make([]byte, table)
	if _, err := w.f.ReadAt(b, at); err != nil {
		return nil, err
	}
	for i := range int64(count) {
		e := b[headerBytes+i*elementBytes:]
		begin := headerBytes + i*elementBytes
		u32 := func(at int) int64 { return int64(binary.NativeEndian.Uint32(e[at:])) }
		if flags == flagBranch { // pos, key's bytes, page
			if begin+u32(0)+u32(4) > length {
				return nil, unsound("element %d is beyond its page", i)
			}
			pages = append(pages, binary.NativeEndian.Uint64(e[8:]))
			continue
		}
		kind, value, size := u32(0), begin+u32(4)+u32(8), u32(12) // flags, pos, key's bytes, value's bytes
		if value+size > length {
			return nil, unsound("element %d is beyond its page", i)
		}
		if kind&elementBucket == 0 {
			continue
		}
		inside, err := w.bucket(at+value, size)
		if err != nil {
			return nil, err
		}
		pages = append(pages, inside...)
	}
	return pages, nil
}

// bucket checks the value of a bucket: its root's page, or if that is 0, a leaf without
// buckets right behind.
func (w *walker) bucket(at, size int64) ([]uint64, error) {
	var h [2 * headerBytes]byte
	if size < headerBytes {
		return nil, unsound("a bucket of %d bytes", size)
	}
	n := min(size, int64(len(h)))
	if _, err := w.f.ReadAt(h[:n], at); err != nil {
		return nil, err
	}
	if root := binary.NativeEndian.Uint64(h[:]); root != 0 {
		return []uint64{root}, nil
	}
	if n < int64(len(h)) {
		return nil, unsound("a bucket of %d bytes", size)
	}
	flags, count := int(binary.NativeEndian.Uint16(h[headerBytes+8:])), int(binary.NativeEndian.Uint16(h[headerBytes+10:]))
	pages, err := w.elements(at+headerBytes, flags, count, size-headerBytes, true)
	if err == nil && (flags != flagLeaf || len(pages) > 0) {
		err = unsound("a bucket within its parent's page has pages")
	}
	return nil, err
}

// free checks that what is listed as free is not used.
func (w *walker) free() error {
	if w.meta.freelist == noFreelist {
		return nil
	}
	flags, count, length, err := w.run(w.meta.freelist)
	if err != nil {
		return err
	}
	at, n := int64(w.meta.freelist)*w.meta.pageBytes+headerBytes, int64(count)
	if count == 0xFFFF { // then the first number is how many there are
		var b [8]byte
		if _, err := w.f.ReadAt(b[:], at); err != nil {
			return err
		}
		n, at = int64(binary.NativeEndian.Uint64(b[:])), at+8
		length -= 8
	}
	if flags != flagFreelist || n < 0 || n > (length-headerBytes)/8 {
		return unsound("%d free pages with flags %#x", n, flags)
	}
	b := make([]byte, n*8)
	if _, err := w.f.ReadAt(b, at); err != nil {
		return err
	}
	for ; len(b) > 0; b = b[8:] {
		id := binary.NativeEndian.Uint64(b)
		if id < 2 || id >= w.meta.end || w.used[id] {
			return unsound("page %d is free, and not", id)
		}
		w.used[id] = true
	}
	return nil
}
