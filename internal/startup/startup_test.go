package startup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/trace"
)

// world is an image of layers whose bytes are known.
type world struct {
	img  *index.Image
	tars map[digest.Digest][]byte
}

func newWorld(sizes ...int) *world {
	w := &world{img: &index.Image{}, tars: map[digest.Digest][]byte{}}
	for i, n := range sizes {
		tar := make([]byte, n)
		rand.NewChaCha8([32]byte{byte(i)}).Read(tar[:n/2]) // the rest compresses
		blob := digest.FromString(fmt.Sprint("layer", i))
		w.tars[blob] = tar
		w.img.Layers = append(w.img.Layers, index.ImageLayer{LayerMeta: index.LayerMeta{Blob: blob, TarBytes: int64(n)}})
	}
	return w
}

func (w *world) read(_ context.Context, layer digest.Digest, off int64, b []byte) error {
	if copy(b, w.tars[layer][off:]) != len(b) {
		return errors.New("read past the end")
	}
	return nil
}

// trace makes a trace of reads: layer, offset, length.
func (w *world) trace(reads ...[3]int64) *trace.Trace {
	t := &trace.Trace{Version: trace.Version, Image: digest.FromString("image"), Runs: 1, Ready: 1500 * time.Millisecond, Created: time.Unix(1700000000, 0)}
	for i, r := range reads {
		t.Accesses = append(t.Accesses, trace.Access{Layer: w.blob(int(r[0])), Offset: r[1], Length: r[2], At: time.Duration(i) * time.Millisecond, Phase: trace.PhaseReady})
	}
	return t
}

func (w *world) blob(i int) digest.Digest {
	if i >= len(w.img.Layers) {
		return digest.FromString("unknown")
	}
	return w.img.Layers[i].Blob
}

func (w *world) build(t testing.TB, tr *trace.Trace) *index.Bundle {
	t.Helper()
	b, err := Build(t.Context(), tr, w.img, w.read)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open takes a bundle apart and checks every byte of it.
func (w *world) open(t testing.TB, b *index.Bundle) *Header {
	t.Helper()
	r := bytes.NewReader(b.Blob)
	h, _, err := ReadHeader(r, b.BundleDescriptor)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Check(w.img); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[int]bool{}
	err = h.Apply(t.Context(), r, unpacker(t, 2), nil, func(int) bool { return true }, func(frame int, raw []byte) error {
		mu.Lock()
		defer mu.Unlock()
		seen[frame] = true
		f := h.Frames[frame]
		for _, p := range h.Pieces[f.First:f.End] {
			want := w.tars[h.Layers[p.Layer].Blob][p.Offset : p.Offset+p.Length]
			if !bytes.Equal(raw[:p.Length], want) || sha256.Sum256(want) != p.Digest {
				return fmt.Errorf("piece at %d is wrong", p.Offset)
			}
			raw = raw[p.Length:]
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != len(h.Frames) || r.Len() != 0 {
		t.Errorf("%d of %d frames, %d bytes left", len(seen), len(h.Frames), r.Len())
	}
	return h
}

func TestBuild(t *testing.T) {
	w := newWorld(3<<20+777, 5000, 2<<20)
	tr := w.trace([3]int64{2, 100, 50}, [3]int64{0, 3 << 20, 1 << 30}, [3]int64{1, 0, 5000}, [3]int64{0, 900 << 10, 600 << 10}, [3]int64{9, 0, 5}, [3]int64{2, 4097, 1},
		[3]int64{0, 5 << 20, 1}, [3]int64{0, 100 << 10, 10}, [3]int64{0, 112 << 10, 10})
	b := w.build(t, tr)
	h := w.open(t, b)
	if h.Ready != tr.Ready || b.Digest != digest.FromBytes(b.Blob) || b.Bytes != int64(len(b.Blob)) {
		t.Errorf("ready %v, digest %s, %d bytes", h.Ready, b.Digest, b.Bytes)
	}
	have := func(layer int, off, n int64) bool {
		for i, l := range h.Layers {
			if l.Blob != w.blob(layer) {
				continue
			}
			for _, p := range h.LayerPieces(i) {
				if q := h.Pieces[p]; q.Offset <= off && off < q.Offset+q.Length {
					off, n = q.Offset+q.Length, n-(q.Offset+q.Length-off)
				}
			}
		}
		return n <= 0
	}
	for _, a := range tr.Accesses[:4] {
		for i := range w.img.Layers {
			if l := &w.img.Layers[i]; l.Blob == a.Layer && !have(i, a.Offset, min(a.Length, l.TarBytes-a.Offset)) {
				t.Errorf("%d bytes at %d of layer %d are not in it", a.Length, a.Offset, i)
			}
		}
	}
	if !have(0, 104<<10, 1) {
		t.Error("a small gap is not filled")
	}
	if p := h.Pieces[0]; h.Layers[p.Layer].Blob != w.blob(0) && h.Layers[p.Layer].Blob != w.blob(2) {
		t.Errorf("the first frame does not have what is read first")
	}
	if again := w.build(t, tr); !bytes.Equal(again.Blob, b.Blob) {
		t.Error("the same trace gives other bytes")
	}
	if n := h.RawBytes(); n > 800<<10 {
		t.Errorf("%d bytes for a trace of some 600 KiB", n)
	}
}

// TestOrder: what is read first is in an earlier frame, also where both are parts
// of one long range.
func TestOrder(t *testing.T) {
	w := newWorld(16 << 20)
	tr := w.trace([3]int64{0, 12 << 20, 4096}, [3]int64{0, 1 << 20, 4096}, [3]int64{0, 0, 16 << 20})
	h := w.open(t, w.build(t, tr))
	frame := map[int64]int{}
	for i, f := range h.PieceFrames() {
		frame[h.Pieces[i].Offset] = f
	}
	if frame[12<<20] != 0 || frame[1<<20] != 0 {
		t.Errorf("what is read first is in frames %d and %d", frame[12<<20], frame[1<<20])
	}
	if h.RawBytes() != 16<<20 {
		t.Errorf("%d bytes", h.RawBytes())
	}
}

func TestNothingToBundle(t *testing.T) {
	w := newWorld(1000)
	for _, tr := range []*trace.Trace{w.trace(), w.trace([3]int64{5, 0, 10}), w.trace([3]int64{0, 2000, 10})} {
		if _, err := Build(t.Context(), tr, w.img, w.read); err == nil {
			t.Error("a bundle of nothing")
		}
	}
	errTest := errors.New("test")
	if _, err := Build(t.Context(), w.trace([3]int64{0, 0, 10}), w.img, func(context.Context, digest.Digest, int64, []byte) error { return errTest }); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
}

// TestDamaged: a blob that is not what the index says is an error, and what came
// before it has been handed out.
func TestDamaged(t *testing.T) {
	w := newWorld(4 << 20)
	b := w.build(t, w.trace([3]int64{0, 0, 4 << 20}))
	apply := func(blob []byte) error {
		r := bytes.NewReader(blob)
		h, _, err := ReadHeader(r, b.BundleDescriptor)
		if err != nil {
			return err
		}
		return h.Apply(t.Context(), r, unpacker(t, 2), nil, func(int) bool { return true }, func(frame int, raw []byte) error {
			f := h.Frames[frame]
			for _, p := range h.Pieces[f.First:f.End] {
				if sha256.Sum256(raw[:p.Length]) != p.Digest {
					return errors.New("wrong piece")
				}
				raw = raw[p.Length:]
			}
			return nil
		})
	}
	for at := int64(0); at < b.Bytes; at += 1 + b.Bytes/200 {
		blob := bytes.Clone(b.Blob)
		blob[at] ^= 0x40
		if apply(blob) == nil {
			t.Errorf("byte %d of %d is damaged and nothing is said", at, b.Bytes)
		}
		if apply(b.Blob[:at]) == nil {
			t.Errorf("cut off at byte %d and nothing is said", at)
		}
	}
	if err := apply(b.Blob); err != nil {
		t.Error(err)
	}
}

func TestApplyEnds(t *testing.T) {
	w := newWorld(8 << 20)
	b := w.build(t, w.trace([3]int64{0, 0, 8 << 20}))
	h := w.open(t, b)
	r := func() *bytes.Reader { return bytes.NewReader(b.Blob[b.HeaderBytes:]) }
	errTest := errors.New("test")
	u := unpacker(t, 2)
	if err := h.Apply(t.Context(), r(), u, nil, func(int) bool { return true }, func(int, []byte) error { return errTest }); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Apply(ctx, r(), u, nil, func(int) bool { return true }, func(int, []byte) error { return nil }); err == nil {
		t.Error("no error of a context that has ended")
	}
	short := bytes.NewReader(b.Blob[b.HeaderBytes : len(b.Blob)-1])
	if err := h.Apply(t.Context(), short, u, nil, func(int) bool { return true }, func(int, []byte) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v of a bundle that is cut off", err)
	}
	// What unpacked those unpacks the next try.
	var mu sync.Mutex
	pieces := 0
	err := h.Apply(t.Context(), r(), u, nil, func(int) bool { return true }, func(frame int, raw []byte) error {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range h.Pieces[h.Frames[frame].First:h.Frames[frame].End] {
			if sha256.Sum256(raw[:p.Length]) != p.Digest {
				t.Errorf("frame %d is wrong", frame)
			}
			raw = raw[p.Length:]
			pieces++
		}
		return nil
	})
	if err != nil || pieces != len(h.Pieces) || len(u.spare) != cap(u.spare) {
		t.Errorf("%d pieces of %d, %d buffers of %d, error %v", pieces, len(h.Pieces), len(u.spare), cap(u.spare), err)
	}
	n := 0
	if err := h.Apply(t.Context(), r(), unpacker(t, 1), nil, func(i int) bool { return i == 3 }, func(i int, _ []byte) error { n += i; return nil }); err != nil || n != 3 {
		t.Errorf("frames that are not wanted: %d, %v", n, err)
	}
}

// Many cores do not make many buffers before a bundle is here.
func TestUnpackerReady(t *testing.T) {
	for _, c := range []struct {
		workers     int
		storedBytes int64
		ready       int
	}{{2, 0, 0}, {2, 1, 1}, {2, 1 << 20, 2}, {2, 1 << 30, 3}, {64, 1 << 30, maxReady}} {
		u, err := NewUnpacker(c.workers, c.storedBytes)
		if err != nil {
			t.Fatal(err)
		}
		ready := 0
		for range cap(u.spare) {
			if b := <-u.spare; b.raw != nil {
				ready++
			}
		}
		if ready != c.ready {
			t.Errorf("%d cores, %d bytes: %d buffers, want %d", c.workers, c.storedBytes, ready, c.ready)
		}
	}
}

func TestHostileHeader(t *testing.T) {
	w := newWorld(4<<20, 1<<20)
	b := w.build(t, w.trace([3]int64{0, 0, 2 << 20}, [3]int64{1, 0, 1 << 20}))
	good := b.Blob[:b.HeaderBytes]
	h, err := DecodeHeader(good, b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	frames := fixedBytes + len(h.Layers)*layerBytes
	pieces := frames + len(h.Frames)*frameBytes
	for name, damage := range map[string]func(b []byte) []byte{
		"magic":            func(b []byte) []byte { b[0]++; return b },
		"version":          func(b []byte) []byte { b[8]++; return b },
		"short":            func(b []byte) []byte { return b[:len(b)-1] },
		"empty":            func([]byte) []byte { return nil },
		"many layers":      func(b []byte) []byte { le.PutUint32(b[12:], 1<<31); return b },
		"many frames":      func(b []byte) []byte { le.PutUint32(b[16:], 1<<31); return b },
		"many pieces":      func(b []byte) []byte { le.PutUint32(b[20:], 1<<31); return b },
		"layer twice":      func(b []byte) []byte { copy(b[fixedBytes+layerBytes:], b[fixedBytes:fixedBytes+32]); return b },
		"negative tar":     func(b []byte) []byte { b[fixedBytes+39] = 0x80; return b },
		"frame bomb":       func(b []byte) []byte { le.PutUint32(b[frames+4:], 1<<30); return b },
		"frame of nothing": func(b []byte) []byte { le.PutUint32(b[frames:], 0); return b },
		"frame too long":   func(b []byte) []byte { le.PutUint32(b[frames:], 1<<31); return b },
		"frame's pieces":   func(b []byte) []byte { le.PutUint32(b[frames+8:], 1<<20); return b },
		"piece's layer":    func(b []byte) []byte { le.PutUint32(b[pieces:], 2); return b },
		"piece's length":   func(b []byte) []byte { le.PutUint32(b[pieces+4:], 1); return b },
		"piece far away":   func(b []byte) []byte { le.PutUint64(b[pieces+8:], 1<<63); return b },
		"piece over end":   func(b []byte) []byte { le.PutUint64(b[pieces+8:], uint64(h.Layers[0].TarBytes-5)); return b },
		"piece on border":  func(b []byte) []byte { le.PutUint64(b[pieces+8:], 1<<20-5); return b },
		"overlap":          func(b []byte) []byte { copy(b[pieces+pieceBytes:], b[pieces:pieces+16]); return b },
	} {
		if _, err := DecodeHeader(damage(bytes.Clone(good)), b.Bytes); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := DecodeHeader(good, b.Bytes+1); err == nil {
		t.Error("a blob that is longer than its frames is accepted")
	}
	for _, d := range []index.BundleDescriptor{{HeaderBytes: 1 << 40, Bytes: 1 << 41}, {HeaderBytes: 10, Bytes: 5}, {HeaderBytes: -1, Bytes: 5}} {
		if _, _, err := ReadHeader(bytes.NewReader(b.Blob), d); err == nil {
			t.Errorf("%+v: accepted", d)
		}
	}
	other := newWorld(4 << 20)
	if h.Check(other.img) == nil {
		t.Error("a bundle of another image is accepted")
	}
	w.img.Layers[0].TarBytes--
	if h.Check(w.img) == nil {
		t.Error("a bundle of a layer of another size is accepted")
	}
}

func FuzzDecodeHeader(f *testing.F) {
	w := newWorld(1<<20+5, 5000)
	b := w.build(f, w.trace([3]int64{0, 0, 300 << 10}, [3]int64{1, 0, 5000}))
	f.Add(b.Blob[:b.HeaderBytes], b.Blob[b.HeaderBytes:])
	f.Fuzz(func(t *testing.T, head, frames []byte) {
		h, err := DecodeHeader(head, int64(len(head)+len(frames)))
		if err != nil {
			return
		}
		again, err := h.encode()
		if err != nil || !bytes.Equal(again, head) {
			t.Fatalf("another header comes back (%v)", err)
		}
		// What is not a frame is an error, never more than the header says.
		_ = h.Apply(t.Context(), bytes.NewReader(frames), unpacker(t, 2), nil, func(int) bool { return true }, func(i int, raw []byte) error {
			if int64(len(raw)) != h.Frames[i].RawBytes {
				t.Errorf("frame %d has %d bytes", i, len(raw))
			}
			return nil
		})
	})
}

func unpacker(t testing.TB, workers int) *Unpacker {
	t.Helper()
	u, err := NewUnpacker(workers, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
