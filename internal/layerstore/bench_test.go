package layerstore

import (
	"crypto/sha256"
	"fmt"
	"testing"
)

const benchSpans = 128

func BenchmarkHave(b *testing.B) {
	f := makeFake(1, 16*SpanBytes, SpanBytes)
	l := acquire(b, openStore(b, b.TempDir(), boot1), f)
	putAll(b, l, f)
	for b.Loop() {
		if !l.HaveRange(5*SpanBytes-10, 128<<10) {
			b.Fatal("not here")
		}
	}
}

// BenchmarkSum is the floor of what verifying costs.
func BenchmarkSum(b *testing.B) {
	data := makeFake(1, SpanBytes, SpanBytes).data
	b.SetBytes(SpanBytes)
	for b.Loop() {
		sha256.Sum256(data)
	}
}

// benchFill runs fn on fresh layers and counts their bytes.
func benchFill(b *testing.B, fn func(s *Store, l *Layer, f *fake)) {
	f := makeFake(1, benchSpans*SpanBytes, SpanBytes)
	s := openStore(b, b.TempDir(), boot1)
	b.SetBytes(f.meta.TarBytes)
	for b.Loop() {
		l := acquire(b, s, f)
		fn(s, l, f)
		b.StopTimer()
		must(b, l.Release())
		must(b, s.Remove(b.Context(), f.meta.Blob))
		b.StartTimer()
	}
}

func BenchmarkPut(b *testing.B) {
	benchFill(b, func(s *Store, l *Layer, f *fake) { putAll(b, l, f) })
}

// BenchmarkHydrate is a layer's whole life here, by how much is hashed on the way.
func BenchmarkHydrate(b *testing.B) {
	for _, every := range []int{0, 8} {
		b.Run(fmt.Sprintf("advance=%d", every), func(b *testing.B) {
			benchFill(b, func(s *Store, l *Layer, f *fake) {
				for i := range f.meta.Spans() {
					put(b, l, f, i)
					if every > 0 && i%every == every-1 {
						_, err := l.Advance(b.Context(), 0)
						must(b, err)
					}
				}
				must(b, l.Finish(b.Context()))
			})
		})
	}
}

func BenchmarkAdvance(b *testing.B) {
	f := makeFake(1, benchSpans*SpanBytes, SpanBytes)
	l := acquire(b, openStore(b, b.TempDir(), boot1), f)
	putAll(b, l, f)
	b.SetBytes(f.meta.TarBytes)
	for b.Loop() {
		l.hashStale.Store(true)
		_, err := l.Advance(b.Context(), 0)
		must(b, err)
	}
}

func BenchmarkIngest(b *testing.B) {
	f := makeFake(1, benchSpans*SpanBytes, SpanBytes)
	s := openStore(b, b.TempDir(), boot1)
	for _, commit := range []bool{false, true} {
		b.Run(fmt.Sprintf("commit=%v", commit), func(b *testing.B) {
			b.SetBytes(f.meta.TarBytes)
			for b.Loop() {
				g, err := s.Ingest(b.Context(), f.meta.Blob, f.meta.BlobBytes, f.meta.DiffID)
				must(b, err)
				for i := range f.meta.Spans() {
					_, err := g.Write(f.span(i))
					must(b, err)
				}
				l, err := g.Seal(b.Context(), f.meta.SpanDigests)
				must(b, err)
				if commit {
					must(b, l.Finish(b.Context()))
				}
				b.StopTimer()
				must(b, l.Release())
				must(b, s.Remove(b.Context(), f.meta.Blob))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkSync(b *testing.B) {
	f := makeFake(1, benchSpans*SpanBytes, SpanBytes)
	l := acquire(b, openStore(b, b.TempDir(), boot1), f)
	putAll(b, l, f)
	must(b, l.Sync())
	for b.Loop() {
		l.changes.Add(1)
		must(b, l.Sync())
	}
}

// BenchmarkAcquire opens a layer of 2 GiB that is half here.
func BenchmarkAcquire(b *testing.B) {
	const spans = 2048
	f := makeFake(1, 16*SpanBytes, SpanBytes)
	f.meta.TarBytes = spans * SpanBytes
	f.meta.SpanDigests = make([][32]byte, spans)
	s := openStore(b, b.TempDir(), boot1)
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			l := acquire(b, s, f)
			b.StopTimer()
			must(b, l.Release())
			must(b, s.Remove(b.Context(), f.meta.Blob))
			b.StartTimer()
		}
	})
	b.Run("known", func(b *testing.B) {
		for b.Loop() {
			l := acquire(b, s, f)
			b.StopTimer()
			must(b, l.Release())
			b.StartTimer()
		}
	})
}
