package inflate

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// needAsm skips where there is only the portable kernel.
func needAsm(t testing.TB) {
	t.Helper()
	if !useAsm {
		t.Skip("no kernel in assembly for this CPU")
	}
}

// withKernel calls f with one of the kernels in use.
func withKernel(asm bool, f func()) {
	defer func(was bool) { useAsm = was }(useAsm)
	useAsm = asm
	f()
}

// mustAgree fails unless two inflaters have written the same and stand at the same place.
func mustAgree(t testing.TB, a, b *inflater) {
	t.Helper()
	type place struct {
		pos, n, lo, stored, length, distance int
		bits                                 uint64
		nbits                                uint
		phase                                phase
		crc                                  uint32
		members                              int
	}
	of := func(d *inflater) place {
		return place{d.pos, d.n, d.lo, d.stored, d.length, d.distance, d.bits, d.nbits, d.phase, d.crc, d.members}
	}
	if x, y := of(a), of(b); x != y {
		t.Fatalf("Go is at %+v, assembly at %+v", x, y)
	}
	if !bytes.Equal(a.out[:a.n], b.out[:b.n]) {
		t.Fatal("output differs")
	}
	if !bytes.Equal(a.marks, b.marks) {
		t.Fatal("marks differ")
	}
}

func sameError(a, b error) bool {
	var x, y *CorruptError
	if errors.As(a, &x) && errors.As(b, &y) {
		return *x == *y
	}
	return a == b
}

// A guarded is memory between two pages that must not be touched.
type guarded []byte

func newGuarded(t testing.TB, pages int) guarded {
	t.Helper()
	page := os.Getpagesize()
	all, err := syscall.Mmap(-1, 0, (pages+2)*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(all) })
	for _, at := range []int{0, (pages + 1) * page} {
		if err := syscall.Mprotect(all[at:at+page], syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return guarded(all[page : (pages+1)*page])
}

// cut returns n bytes, or as many as there are, at one of the ends.
func (g guarded) cut(n int, atEnd bool) []byte {
	n = min(n, len(g))
	if atEnd {
		return g[len(g)-n:]
	}
	return g[:n:n]
}

// A kernelPair runs both kernels with the same tables and input. That and the
// output lie between guard pages: what touches a byte beyond crashes.
type kernelPair struct {
	in         guarded
	out        [2]guarded
	d          [2]*inflater
	marks      [2][windowBytes]byte
	window     []byte
	stops      [stopFarBack + 1]int
	windowUsed int
}

func newKernelPair(t testing.TB) *kernelPair {
	return &kernelPair{
		in: newGuarded(t, 2), out: [2]guarded{newGuarded(t, 3), newGuarded(t, 3)},
		d: [2]*inflater{new(inflater), new(inflater)}, window: sample(windowBytes),
	}
}

// A kernelCase is what a pair is to decode.
type kernelCase struct {
	lit, dist []uint8 // code lengths; none for the fixed code
	src       []byte
	size      int // of the output
	lo, n     int // in it; lo <= n
	atEnd     bool
}

// run lets both kernels decode c up to an error, the end of the block or the
// edge of the buffers, and compares them after each call.
func (k *kernelPair) run(t testing.TB, c kernelCase) {
	t.Helper()
	in := k.in.cut(len(c.src), c.atEnd)
	copy(in, c.src)
	for i, d := range k.d {
		d.reset(in, 0, true)
		d.setOut(k.out[i].cut(c.size, c.atEnd))
		for j := range d.out[:c.n] {
			d.out[j] = byte(j)
		}
		d.phase, d.lo, d.n = phaseHuffman, c.lo, c.n
		d.nlit, d.ndist = copy(d.lens[:], c.lit), copy(d.lens[len(c.lit):], c.dist)
		if c.lit == nil {
			d.useFixed()
		} else if d.useDynamic() != nil {
			return
		}
		clear(k.marks[i][:])
		if c.lo == 0 {
			d.window, d.marks = k.window, k.marks[i][:]
		}
	}
	a, b := k.d[0], k.d[1]
	lastIn, lastOut := len(in)-fastIn, len(a.out)-fastOut
	for a.pos <= lastIn && a.n <= lastOut && a.length == 0 {
		why, length, distance := symbolsGo(a, lastIn, lastOut)
		why2, length2, distance2 := symbolsAsm(b, lastIn, lastOut)
		for _, d := range k.d {
			d.nbits &= 63
			d.bits &= 1<<d.nbits - 1
		}
		k.stops[why]++
		if why != why2 || why == stopFarBack && (length != length2 || distance != distance2) {
			t.Fatalf("Go stops with %d (%d, %d), assembly with %d (%d, %d)", why, length, distance, why2, length2, distance2)
		}
		mustAgree(t, a, b)
		if why != stopFarBack {
			return
		}
		err, err2 := a.copyMatch(distance, length), b.copyMatch(distance2, length2)
		if !sameError(err, err2) {
			t.Fatalf("Go: %v, assembly: %v", err, err2)
		}
		if err != nil {
			return
		}
		k.windowUsed++
		mustAgree(t, a, b)
	}
}

func randomCase(k *kernelPair, rng *rand.Rand, atEnd bool) kernelCase {
	c := kernelCase{lit: skewedLens(rng, maxLitCodes), dist: skewedLens(rng, maxDistCodes), atEnd: atEnd}
	c.size = fastOut + rng.IntN(len(k.out[0])-fastOut+1)
	if rng.IntN(2) == 0 {
		c.size = fastOut + rng.IntN(400)
	}
	c.n = rng.IntN(c.size - fastOut + 1)
	kind := rng.IntN(8)
	switch kind {
	case 0: // one distance code: the other bit is none
		c.dist = make([]uint8, 1+rng.IntN(maxDistCodes))
		c.dist[rng.IntN(len(c.dist))] = 1
	case 1: // has two codes that are none
		c.lit, c.dist = nil, nil
	case 2: // mostly matches of 257 and 258 bytes at the last place in out where one may begin
		c.lit, c.dist = make([]uint8, maxLitCodes), make([]uint8, maxDistCodes)
		c.lit['a'], c.lit[284], c.lit[285], c.lit[endOfBlock] = 1, 3, 3, 2
		c.dist[rng.IntN(8)], c.dist[8+rng.IntN(8)] = 1, 1
		c.n = max(0, c.size-fastOut-rng.IntN(3)*rng.IntN(2))
	case 3: // of all literals, none shorter than 8 bits
		c.lit = bytes.Repeat([]byte{9}, maxLitCodes)
		for j := range 512 - maxLitCodes {
			c.lit[j%256] = 8
		}
	}
	if rng.IntN(2) == 0 {
		c.lo = rng.IntN(c.n + 1)
	}
	if kind > 5 { // all symbols are as likely, of the longest codes too
		c.lo = 0
		e := &encoder{rng: rng, out: make([]byte, c.n)}
		e.symbols(newCode(c.lit), newCode(c.dist), 1+rng.IntN(300))
		c.src = append(e.buf, 0, 0)
		return c
	}
	c.src = make([]byte, fastIn+rng.IntN(len(k.in)-fastIn+1))
	for j := range c.src {
		c.src[j] = byte(rng.Uint32())
	}
	return c
}

// TestKernelsAgree runs the kernels against guard pages, with all kinds of codes
// and places, most on noise: that is symbols of all kinds, and what is none.
func TestKernelsAgree(t *testing.T) {
	needAsm(t)
	k := newKernelPair(t)
	rng := rand.New(rand.NewPCG(6, 6))
	runs := 20_000
	if testing.Short() {
		runs = 3000
	}
	for i := range runs {
		k.run(t, randomCase(k, rng, i%2 == 0))
	}
	for why, n := range k.stops {
		if n < runs/200 {
			t.Errorf("stop %d was seen %d times only", why, n)
		}
	}
	if k.windowUsed < runs/200 {
		t.Errorf("%d matches came from the window", k.windowUsed)
	}
}

// FuzzKernels does the same with codes and input from outside.
func FuzzKernels(f *testing.F) {
	rng := rand.New(rand.NewPCG(8, 8))
	for i := range 10 {
		lens := append(skewedLens(rng, maxLitCodes), skewedLens(rng, maxDistCodes)...)
		f.Add(lens, noise(1000)[i*50:], uint16(2000*i), uint16(200*i), uint16(100*i), i%2 == 0)
	}
	k := newKernelPair(f)
	f.Fuzz(func(t *testing.T, lens, src []byte, size, n, lo uint16, atEnd bool) {
		needAsm(t)
		if len(lens) < maxLitCodes+1 || len(lens) > maxLitCodes+maxDistCodes {
			return
		}
		for i := range lens {
			lens[i] &= 15
		}
		c := kernelCase{lit: lens[:maxLitCodes], dist: lens[maxLitCodes:], src: src, size: min(int(size), len(k.out[0])), atEnd: atEnd}
		c.n = min(int(n), c.size)
		c.lo = min(int(lo), c.n)
		k.run(t, c)
	})
}

// twins decodes a gzip blob with both kernels in the same pieces of input and
// output, up to about limit bytes, and compares them after each. It returns
// whether the blob came to its end.
func twins(t *testing.T, blob []byte, rng *rand.Rand, limit int) bool {
	t.Helper()
	var d [2]*inflater
	var err [2]error
	var st [2]status
	var out [2][]byte
	var windows, marks [2][windowBytes]byte
	for i := range d {
		d[i] = new(inflater)
		d[i].reset(nil, 0, false)
		d[i].checkCRC = true
		out[i] = make([]byte, 1<<20)
	}
	for have, total := 0, 0; total < limit; {
		size := 1 + rng.IntN(1<<(rng.IntN(20)+1))
		for i := range d {
			clear(marks[i][:])
			d[i].window = d[i].slideWindow(&windows[i])
			d[i].marks = marks[i][:]
			d[i].setOut(out[i][:size])
		}
		for {
			for i := range d {
				d[i].in, d[i].eof = blob[:have], have == len(blob)
				withKernel(i == 1, func() { st[i], err[i] = d[i].run() })
			}
			mustAgree(t, d[0], d[1])
			if st[0] != st[1] || !sameError(err[0], err[1]) {
				t.Fatalf("Go: %d, %v; assembly: %d, %v", st[0], err[0], st[1], err[1])
			}
			if err[0] == nil && !bytes.Equal(d[0].appendState(nil), d[1].appendState(nil)) {
				t.Fatal("states differ")
			}
			if st[0] != statusInput || err[0] != nil {
				break
			}
			have = min(len(blob), have+1+rng.IntN(1<<(rng.IntN(18)+1)))
		}
		total += d[0].n
		if st[0] == statusEnd || err[0] != nil {
			return err[0] == nil
		}
		for i := range d {
			d[i].updateCRC()
		}
	}
	return false
}

// TestTwins compares the kernels on blobs of all shapes, and on what flipped bits
// make of them.
func TestTwins(t *testing.T) {
	needAsm(t)
	rng := rand.New(rand.NewPCG(9, 9))
	flips := 30
	if testing.Short() {
		flips = 3
	}
	for _, c := range gzipCases(t) {
		for range 3 {
			if !twins(t, c.blob, rng, 1<<30) {
				t.Errorf("%s was not decoded", c.name)
			}
		}
		if len(c.blob) < 100 {
			continue
		}
		for range flips {
			bad := bytes.Clone(c.blob)
			for range 1 + rng.IntN(3) {
				bad[gzipHeaderBytes+rng.IntN(len(bad)-gzipHeaderBytes)] ^= 1 << rng.IntN(8)
			}
			twins(t, bad[:len(bad)-rng.IntN(2)*rng.IntN(50)], rng, 4<<20)
		}
	}
}

// TestCorpusTwins compares them on real layers.
func TestCorpusTwins(t *testing.T) {
	needAsm(t)
	for _, l := range corpusLayers(t) {
		t.Run(filepath.Base(l.path)[:12], func(t *testing.T) {
			blob, err := os.ReadFile(l.path)
			if err != nil {
				t.Fatal(err)
			}
			limit := math.MaxInt
			if testing.Short() {
				limit = 16 << 20
			}
			if !twins(t, blob, rand.New(rand.NewPCG(10, uint64(len(blob)))), limit) && !testing.Short() {
				t.Error("it was not decoded")
			}
		})
	}
}

// TestScanAgrees compares what scans hand out: windows and states too.
func TestScanAgrees(t *testing.T) {
	needAsm(t)
	for _, c := range gzipCases(t) {
		scansAgree(t, c.blob, ScanOptions{Format: Gzip, SpanBytes: 50_001})
	}
}

func scansAgree(t *testing.T, blob []byte, opts ScanOptions) {
	t.Helper()
	var spans [2][]Span
	var res [2]Result
	var err [2]error
	for i := range spans {
		withKernel(i == 1, func() { spans[i], res[i], err[i] = scanAll(t, bytes.NewReader(blob), opts) })
	}
	if len(spans[0]) != len(spans[1]) {
		t.Fatalf("Go makes %d spans, assembly %d", len(spans[0]), len(spans[1]))
	}
	for i, a := range spans[0] {
		b := spans[1][i]
		p, q := a.Point, b.Point
		if !bytes.Equal(a.Data, b.Data) || a.EndCompressed != b.EndCompressed || p.OffsetCompressed != q.OffsetCompressed ||
			p.Kind != q.Kind || !bytes.Equal(p.State, q.State) || !bytes.Equal(p.Window, q.Window) {
			t.Fatalf("span %d differs", i)
		}
	}
	if res[0] != res[1] || (err[0] == nil) != (err[1] == nil) || err[0] != nil && err[0].Error() != err[1].Error() {
		t.Fatalf("Go: %+v, %v; assembly: %+v, %v", res[0], err[0], res[1], err[1])
	}
}
