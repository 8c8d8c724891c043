package spanhash

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
)

// check compares a stream of parts with crypto/sha256.
func check(t *testing.T, parts [][]byte) {
	t.Helper()
	s, all := New(), sha256.New()
	for i, part := range parts {
		if got, want := s.Next(part), sha256.Sum256(part); got != want {
			t.Fatalf("part %d of %d, %d bytes: %x, want %x", i, len(parts), len(part), got, want)
		}
		all.Write(part)
		if got, want := s.Sum(), [sha256.Size]byte(all.Sum(nil)); got != want {
			t.Fatalf("after part %d of %d: %x, want %x", i, len(parts), got, want)
		}
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func testStream(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	check(t, nil)
	for n := range 300 {
		check(t, [][]byte{randomBytes(r, n)})
		check(t, [][]byte{randomBytes(r, 64*(n%9)), randomBytes(r, n), randomBytes(r, 128), randomBytes(r, n)})
	}
	parts := make([][]byte, 40)
	for i := range parts {
		parts[i] = randomBytes(r, 64*r.IntN(2000))
	}
	check(t, append(parts, randomBytes(r, 1021)))
	check(t, [][]byte{bytes.Repeat([]byte{0xff}, 1<<20), make([]byte, 1<<20)})
	odd := randomBytes(r, 4096+15)
	for i := range 16 { // at any address
		check(t, [][]byte{odd[i : i+4032], odd[i : i+64]})
	}
}

func TestStream(t *testing.T) {
	if !accelerated {
		t.Log("this CPU has no SHA instructions that are used: only crypto/sha256 is tested")
	}
	testStream(t)
}

func TestStreamPlain(t *testing.T) { withoutAcceleration(t, testStream) }

func FuzzStream(f *testing.F) {
	f.Add([]byte("abc"), uint(0))
	f.Add(make([]byte, 4096), uint(192))
	f.Fuzz(func(t *testing.T, b []byte, cut uint) {
		at := int(cut % uint(len(b)+1))
		check(t, [][]byte{b[:at], b[at:], b})
	})
}

func BenchmarkStream(b *testing.B) {
	part := randomBytes(rand.New(rand.NewPCG(1, 2)), 1<<20)
	b.Run("both at once", func(b *testing.B) {
		b.SetBytes(int64(len(part)))
		s := New()
		for b.Loop() {
			s.Next(part)
		}
	})
	b.Run("one after the other", func(b *testing.B) {
		b.SetBytes(int64(len(part)))
		s := sha256.New()
		for b.Loop() {
			s.Write(part)
			sha256.Sum256(part)
		}
	})
}
