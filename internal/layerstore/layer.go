package layerstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const stripes = 64

// Layer is an acquired layer. Its methods may be called concurrently, until the
// caller's Release.
type Layer struct {
	store *Store
	entry *entry // set before anyone else sees the layer
	meta  Meta
	file  *os.File
	users int // guarded by entry.gate

	// The bits. Set and cleared under putMu (read or write), looked at without.
	have    []atomic.Uint64
	suspect []atomic.Uint64 // on disk perhaps, from before; never set together with have
	here    atomic.Int64    // bytes whose bit is set
	changes atomic.Uint64   // counts changes of have

	pieces   atomic.Pointer[pieces] // nil: none
	complete atomic.Bool            // the durable mark is set
	gone     atomic.Bool            // quarantined; set under putMu
	revoked  atomic.Pointer[func()] // nil: nobody wants to know
	closed   atomic.Bool

	// putMu: readers write spans and set bits, a writer takes bits back.
	putMu sync.RWMutex
	// stripe serialises what is done to one span.
	stripe [stripes]sync.Mutex

	// syncMu guards the have file and what is known of it.
	syncMu       sync.Mutex
	durable      []uint64 // bits whose data survived a sync of ours or of an earlier owner
	savedChanges uint64   // changes at the last save
	saved        bool     // the have file says what durable says
	savedClean   bool
	generation   uint64
	metaDurable  bool

	// hashMu guards the running digest of the tar's first hashed bytes.
	hashMu    sync.Mutex
	sum       hash.Hash
	right     bool         // it is known to come out as the diffID: the ingest's caller has hashed it
	hashed    atomic.Int64 // written under hashMu
	hashStale atomic.Bool  // bits were taken back: begin again
	flushed   atomic.Int64 // bytes put when write-back was last started
	put       atomic.Int64 // bytes put since the layer was opened
}

func newLayer(s *Store, m Meta, f *os.File) *Layer {
	words := bitmapWords(m.Spans())
	return &Layer{
		store: s, meta: m, file: f,
		have: make([]atomic.Uint64, words), suspect: make([]atomic.Uint64, words),
		durable: make([]uint64, words), sum: sha256.New(),
	}
}

// believeMap takes over what a have file says; nil believes nothing.
func (l *Layer) believeMap(h *haveMap) {
	if h == nil {
		for i := range l.meta.Spans() {
			setBit(l.suspect, i)
		}
		return
	}
	l.generation = h.generation
	clean, complete := h.flags&flagClean != 0, h.flags&flagComplete != 0
	believed := complete || h.boot.same(l.store.boot)
	for i := range l.meta.Spans() {
		switch {
		case h.has(i) && believed:
			setBit(l.have, i)
			_, n := l.meta.Span(i)
			l.here.Add(n)
		case h.has(i) || !clean:
			setBit(l.suspect, i)
		}
	}
	if believed {
		copy(l.durable, h.bits)
		l.saved, l.savedClean = true, clean
	}
	l.complete.Store(complete)
}

func setBit(words []atomic.Uint64, i int)   { words[i>>6].Or(1 << (i & 63)) }
func clearBit(words []atomic.Uint64, i int) { words[i>>6].And(^uint64(1 << (i & 63))) }

func (l *Layer) bit(words []atomic.Uint64, i int) bool {
	return i >= 0 && i < l.meta.Spans() && words[i>>6].Load()&(1<<(i&63)) != 0
}

// Meta returns the description the layer is verified against.
func (l *Layer) Meta() Meta { return l.meta }

// File returns the one descriptor through which the tar may be touched. It is
// the store's: not to be closed.
func (l *Layer) File() *os.File { return l.file }

// Path returns where the tar is. Opening it is for mounting only.
func (l *Layer) Path() string {
	return filepath.Join(l.store.layerDir(l.meta.Blob), tarName)
}

// Complete reports that all of the layer is here, durably, and has its diffID.
func (l *Layer) Complete() bool { return l.complete.Load() }

// Have reports whether span i is here and right. It takes no lock.
func (l *Layer) Have(i int) bool { return l.bit(l.have, i) }

// Suspect reports whether span i may be on disk, from an earlier run or in
// pieces, so that Recheck may save its transfer.
func (l *Layer) Suspect(i int) bool { return l.bit(l.suspect, i) || !l.Have(i) && l.inPieces(i) }

// HaveRange reports whether n bytes of the tar from off on are here, as spans or
// as pieces; what lies past the end of the tar does not count. It takes no lock.
func (l *Layer) HaveRange(off, n int64) bool {
	if n <= 0 || off >= l.meta.TarBytes {
		return true
	}
	if off < 0 {
		return false
	}
	end := l.meta.TarBytes
	if n < end-off {
		end = off + n
	}
	pieces := l.pieces.Load()
	for off < end {
		i := off / l.meta.SpanBytes
		border := min(end, (i+1)*l.meta.SpanBytes)
		if !l.Have(int(i)) && (pieces == nil || !pieces.covered(off, border)) {
			return false
		}
		off = border
	}
	return true
}

// HaveBytes returns how much of the tar is here.
func (l *Layer) HaveBytes() int64 { return l.here.Load() }

func (l *Layer) checkSpan(i int) error {
	if i < 0 || i >= l.meta.Spans() {
		return fmt.Errorf("layer %s has no span %d", l.meta.Blob, i)
	}
	return nil
}

// verify compares bytes with what the span table says of span i.
func (l *Layer) verify(i int, data []byte, path string) error {
	_, n := l.meta.Span(i)
	if sum := sha256.Sum256(data); sum != l.meta.SpanDigests[i] || int64(len(data)) != n {
		want := l.meta.SpanDigests[i]
		return &SpanError{
			Layer: l.meta.Blob, Span: i, Path: path, WantBytes: n, GotBytes: int64(len(data)),
			Want: digest.NewDigestFromBytes(digest.SHA256, want[:]), Got: digest.NewDigestFromBytes(digest.SHA256, sum[:]),
		}
	}
	return nil
}

// Put verifies the bytes of span i, writes them and then believes them. A span
// that is here already is left alone. Wrong bytes are *SpanError, a write that
// does not get everything to the file *WriteError; the span then stays missing.
// It neither syncs nor waits for one.
func (l *Layer) Put(i int, data []byte) error {
	if err := l.checkSpan(i); err != nil {
		return err
	}
	if l.Have(i) {
		return nil
	}
	if err := l.verify(i, data, ""); err != nil {
		return err
	}
	l.putMu.RLock()
	defer l.putMu.RUnlock()
	mu := &l.stripe[i%stripes]
	mu.Lock()
	defer mu.Unlock()
	if l.gone.Load() {
		return l.goneError()
	}
	if l.Have(i) {
		return nil
	}
	off, _ := l.meta.Span(i)
	if n, err := l.file.WriteAt(data, off); err != nil {
		var perr *fs.PathError // names where the file was when it was opened
		if errors.As(err, &perr) {
			err = perr.Err
		}
		return &WriteError{Layer: l.meta.Blob, Span: i, Path: l.Path(), MissingBytes: int64(len(data) - n), Err: err}
	}
	l.comparePieces(i, data)
	l.put.Add(int64(len(data)))
	l.believe(i)
	return nil
}

// believe sets a bit. putMu and the span's stripe are held.
func (l *Layer) believe(i int) {
	_, n := l.meta.Span(i)
	clearBit(l.suspect, i)
	setBit(l.have, i)
	l.here.Add(n)
	l.changes.Add(1)
}

// forget takes bits back and returns how many were set. syncMu is held. Whoever
// wants the bytes gone as well (a hole punched to free space) must save the have
// file between the two, and keep readers from seeing the hole.
func (l *Layer) forget(which func(i int) bool) (spans int) {
	l.putMu.Lock()
	defer l.putMu.Unlock()
	for i := range l.meta.Spans() {
		if l.Have(i) && which(i) {
			off, n := l.meta.Span(i)
			l.forgetPieces(off, n)
			clearBit(l.have, i)
			l.durable[i>>6] &^= 1 << (i & 63)
			l.here.Add(-n)
			spans++
		}
	}
	if spans > 0 {
		l.changes.Add(1)
		l.hashStale.Store(true)
		l.revoke()
	}
	return spans
}

// OnRevoke has fn called whenever HaveRange may have become false for a range that it was true for, after it did. It is called with locks
// of the layer held, so it must not use the layer, and must not block.
func (l *Layer) OnRevoke(fn func()) { l.revoked.Store(&fn) }

func (l *Layer) revoke() {
	if fn := l.revoked.Load(); fn != nil {
		(*fn)()
	}
}

var spanBuffers = sync.Pool{New: func() any { return new([]byte) }}

// Recheck looks at a suspect span on disk and believes it if its digest is
// right. It reports whether the span is here now; a span that is neither here
// nor suspect is not read. A hole never passes for data, unless the span really
// is all zeros.
func (l *Layer) Recheck(i int) (bool, error) {
	if err := l.checkSpan(i); err != nil {
		return false, err
	}
	l.putMu.RLock()
	defer l.putMu.RUnlock()
	mu := &l.stripe[i%stripes]
	mu.Lock()
	defer mu.Unlock()
	if l.gone.Load() {
		return false, l.goneError()
	}
	if l.Have(i) || !l.Suspect(i) {
		return l.Have(i), nil
	}
	off, n := l.meta.Span(i)
	bp := spanBuffers.Get().(*[]byte)
	defer spanBuffers.Put(bp)
	buf := grow(bp, n)
	old := l.bit(l.suspect, i)
	if hasData(l.file, off, n) {
		// After a failed write-back the page cache holds, as clean, what the
		// disk does not: ask the disk.
		var err error
		if old {
			err = dropCache(l.file, off, n)
		}
		if err != nil {
			return false, fmt.Errorf("recheck span %d of layer %s: %w", i, l.meta.Blob, err)
		}
		if _, err := l.file.ReadAt(buf, off); err != nil {
			return false, fmt.Errorf("recheck span %d of layer %s: %w", i, l.meta.Blob, err)
		}
	} else {
		clear(buf)
	}
	if l.verify(i, buf, "") != nil {
		clearBit(l.suspect, i)
		l.doubt(i)
		return false, nil
	}
	l.believe(i)
	return true, nil
}

func grow(bp *[]byte, n int64) []byte {
	if int64(cap(*bp)) < n {
		*bp = make([]byte, n)
	}
	return (*bp)[:n]
}

// missing returns the number of spans that are not here.
func (l *Layer) missing() int {
	n := l.meta.Spans()
	for i := range l.have {
		n -= bits.OnesCount64(l.have[i].Load())
	}
	return n
}

func (l *Layer) goneError() error {
	m := &l.meta
	if err := l.store.refused(m); err != nil {
		return err
	}
	return &QuarantinedError{Layer: m.Blob, Table: m.TableDigest(), Reason: "while in use"}
}

// Release gives the layer up. The last user's Release makes durable what is
// here and closes the tar; its error is one of Sync's.
func (l *Layer) Release() error {
	e := l.entry
	e.gate <- struct{}{}
	defer e.unlock()
	if l.closed.Load() {
		return nil
	}
	if l.users--; l.users > 0 {
		return nil
	}
	e.layer.CompareAndSwap(l, nil)
	return l.close()
}

// close makes the layer durable and closes its tar. The entry's gate is held.
func (l *Layer) close() error {
	if l.closed.Swap(true) {
		return nil
	}
	var err error
	if !l.gone.Load() {
		err = l.save(true)
		l.touch()
	}
	return errors.Join(err, l.file.Close())
}

// touch notes that the layer was used, in the modification time of its meta file.
func (l *Layer) touch() {
	path, now := filepath.Join(l.store.layerDir(l.meta.Blob), metaName), time.Now()
	if st, err := os.Stat(path); err == nil && now.Sub(st.ModTime()) > lastUseGrain {
		if err := os.Chtimes(path, now, now); err != nil {
			l.store.log.Warn("note last use of layer", "layer", l.meta.Blob, "err", err)
		}
	}
}
