package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// bitWriter writes DEFLATE's bit order.
type bitWriter struct {
	buf  []byte
	bits uint64
	n    uint
}

func (w *bitWriter) write(v uint64, n uint) {
	w.bits |= v << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.buf = append(w.buf, byte(w.bits))
		w.bits >>= 8
	}
}

func (w *bitWriter) align() {
	if w.n > 0 {
		w.write(0, 8-w.n)
	}
}

// A code is a canonical Huffman code as it is sent: bits reversed.
type code struct {
	lens []uint8
	bits []uint64
}

func newCode(lens []uint8) code {
	c := code{lens, make([]uint64, len(lens))}
	next := uint64(0)
	for n := uint8(1); n <= maxCodeBits; n++ {
		for s, l := range lens {
			if l == n {
				c.bits[s] = bits.Reverse64(next) >> (64 - n)
				next++
			}
		}
		next <<= 1
	}
	return c
}

func (c code) put(w *bitWriter, s int) { w.write(c.bits[s], uint(c.lens[s])) }

// skewedLens returns lengths of a complete code of n symbols, from very short
// to 15 bits, dealt to the symbols in a random order.
func skewedLens(rng *rand.Rand, n int) []uint8 {
	lens := bytes.Repeat([]byte{maxCodeBits}, n)
	order := rng.Perm(n)
	for left := 1<<maxCodeBits - n; left > 0; {
		for _, s := range order {
			most := 2 + rng.IntN(12)
			for unit := 1 << (maxCodeBits - lens[s]); unit <= left && int(lens[s]) > most; unit *= 2 {
				left -= unit
				lens[s]--
			}
		}
	}
	return lens
}

// An encoder writes DEFLATE blocks of random symbols, and what they mean.
type encoder struct {
	bitWriter
	out []byte
	rng *rand.Rand
}

func (e *encoder) header(final bool, kind uint64) {
	f := uint64(0)
	if final {
		f = 1
	}
	e.write(f, 1)
	e.write(kind, 2)
}

func (e *encoder) storedBlock(data []byte, final bool) {
	e.header(final, 0)
	e.align()
	e.write(uint64(len(data)), 16)
	e.write(uint64(len(data))^0xffff, 16)
	e.buf = append(e.buf, data...)
	e.out = append(e.out, data...)
}

func (e *encoder) fixedBlock(symbols int, final bool) {
	e.header(final, 1)
	lit := make([]uint8, 288)
	for i := range lit {
		lit[i] = [...]uint8{8, 9, 7, 8}[min(i/144+i/256+i/280, 3)]
	}
	for i := 144; i < 256; i++ {
		lit[i] = 9
	}
	for i := 256; i < 280; i++ {
		lit[i] = 7
	}
	e.symbols(newCode(lit), newCode(bytes.Repeat([]byte{5}, 30)), symbols)
}

// dynamicBlock has codes of all lengths from 2 to 15 bits.
func (e *encoder) dynamicBlock(symbols int, final bool) {
	e.header(final, 2)
	lit, dist := skewedLens(e.rng, maxLitCodes), skewedLens(e.rng, maxDistCodes)
	e.write(maxLitCodes-257, 5)
	e.write(maxDistCodes-1, 5)
	e.write(19-4, 4)
	pre := make([]uint8, 19)
	for _, s := range preOrder {
		if s < 16 {
			pre[s] = 4
		}
		e.write(uint64(pre[s]), 3)
	}
	preCode := newCode(pre)
	for _, l := range append(bytes.Clone(lit), dist...) {
		preCode.put(&e.bitWriter, int(l))
	}
	e.symbols(newCode(lit), newCode(dist), symbols)
}

// symbols writes random symbols, all of them likely, and the end of the block.
func (e *encoder) symbols(lit, dist code, n int) {
	for range n {
		if len(e.out) == 0 || e.rng.IntN(4) > 0 {
			b := byte(e.rng.IntN(256))
			lit.put(&e.bitWriter, int(b))
			e.out = append(e.out, b)
			continue
		}
		length, distance := e.extra(lit, 257+e.rng.IntN(29), litSyms[:]), 0
		for distance = len(e.out) + 1; distance > len(e.out); {
			s := e.rng.IntN(maxDistCodes)
			if base := int(distSyms[s] >> 16); base > len(e.out) {
				continue
			}
			saved := e.bitWriter
			saved.buf = saved.buf[:len(saved.buf):len(saved.buf)]
			if distance = e.extra(dist, s, distSyms[:]); distance > len(e.out) {
				e.bitWriter = saved
			}
		}
		for range length {
			e.out = append(e.out, e.out[len(e.out)-distance])
		}
	}
	lit.put(&e.bitWriter, endOfBlock)
}

// extra writes symbol s with random extra bits, and returns its value.
func (e *encoder) extra(c code, s int, syms []uint32) int {
	c.put(&e.bitWriter, s)
	n := uint(syms[s] & 63)
	v := e.rng.Uint64N(1 << n)
	e.write(v, n)
	return int(syms[s]>>16) + int(v)
}

// member makes a gzip member of the blocks written.
func (e *encoder) member() []byte {
	e.align()
	b := append([]byte{gzipID1, gzipID2, gzipDeflate, 0, 0, 0, 0, 0, 0, 255}, e.buf...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(e.out))
	return binary.LittleEndian.AppendUint32(b, uint32(len(e.out)))
}

func newEncoder(seed uint64) *encoder { return &encoder{rng: rand.New(rand.NewPCG(seed, 1))} }

// sample returns data with some structure: words, runs, noise, far repeats.
func sample(n int) []byte {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	b := make([]byte, 0, n+300)
	for len(b) < n {
		switch k := rng.IntN(8); {
		case k == 0:
			b = append(b, bytes.Repeat([]byte{byte(rng.IntN(4))}, rng.IntN(300))...)
		case k == 1:
			for range rng.IntN(40) {
				b = append(b, byte(rng.Uint32()))
			}
		case k < 5 && len(b) > 300:
			at := rng.IntN(min(len(b)-260, 40000)) + 1
			b = append(b, b[len(b)-at-259:][:rng.IntN(259)]...)
		default:
			for range rng.IntN(30) {
				b = append(b, "etaoin shrdlu,{}"[rng.IntN(16)])
			}
		}
	}
	return b[:n]
}

func noise(n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(b)
	return b
}

func gzipped(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, data)
	return buf.Bytes()
}

func zstded(t testing.TB, data []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, opts...)
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, data)
	return buf.Bytes()
}

func write(t testing.TB, w io.WriteCloser, data []byte) {
	t.Helper()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
