package layerstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"sync"
	"testing"
)

// piecesOf cuts ranges of a fake into a table.
func piecesOf(f *fake, ranges ...[2]int64) []Piece {
	var list []Piece
	for _, r := range ranges {
		list = append(list, Piece{Offset: r[0], Length: r[1], Digest: sha256.Sum256(f.data[r[0] : r[0]+r[1]])})
	}
	return list
}

func (f *fake) piece(p Piece) []byte { return f.data[p.Offset : p.Offset+p.Length] }

func TestPieces(t *testing.T) {
	f := makeFake(1, 5*testSpan+100, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	list := piecesOf(f, [2]int64{0, 512}, [2]int64{512, 1024}, [2]int64{3000, testSpan - 3000}, [2]int64{testSpan, 100}, [2]int64{5 * testSpan, 100})
	must(t, l.SetPieces(list, nil))
	for i, p := range list {
		if l.HavePiece(i) || l.HaveRange(p.Offset, p.Length) {
			t.Errorf("piece %d is here before it came", i)
		}
		must(t, l.PutPiece(i, f.piece(p)))
		if !l.HavePiece(i) || !l.HaveRange(p.Offset, p.Length) {
			t.Errorf("piece %d is not here", i)
		}
	}
	for _, c := range []struct {
		off, n int64
		here   bool
	}{
		{0, 1536, true}, {1, 1535, true}, {0, 1537, false}, {1535, 1, true}, {1536, 1, false}, {2999, 2, false},
		{3000, testSpan - 3000 + 100, true}, {3000, testSpan - 3000 + 101, false}, {5 * testSpan, 1 << 40, true}, {5*testSpan - 1, 2, false},
	} {
		if got := l.HaveRange(c.off, c.n); got != c.here {
			t.Errorf("HaveRange(%d, %d) = %v", c.off, c.n, got)
		}
	}
	put(t, l, f, 0) // a span and a piece of the next
	if !l.HaveRange(0, testSpan+100) || l.HaveRange(0, testSpan+101) {
		t.Error("span and pieces do not add up")
	}
	if l.HaveBytes() != testSpan {
		t.Errorf("%d bytes here, want those of one span", l.HaveBytes())
	}
	l.DropPieces()
	if l.HaveRange(testSpan, 100) || !l.HaveRange(0, testSpan) {
		t.Error("pieces are not forgotten, or a span is")
	}
	must(t, l.PutPiece(3, f.piece(list[3]))) // without a table nothing is taken
	if l.HaveRange(testSpan, 100) {
		t.Error("a piece without a table is here")
	}
	checkBelieved(t, l, f)
	must(t, l.Release())
}

func TestMissingPieces(t *testing.T) {
	f := makeFake(2, 3*testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	must(t, l.SetPieces(piecesOf(f, [2]int64{0, 1000}, [2]int64{1000, 1000}, [2]int64{testSpan, testSpan}), nil))
	check := func(off, n int64, enough bool, want ...int) {
		t.Helper()
		got, ok := l.MissingPieces(off, n)
		if ok != enough || enough && len(got) != len(want) {
			t.Fatalf("MissingPieces(%d, %d) = %v, %v", off, n, got, ok)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("MissingPieces(%d, %d) = %v, want %v", off, n, got, want)
			}
		}
	}
	check(10, 1500, true, 0, 1)
	check(10, 2000, false)
	check(testSpan+1, 1, true, 2)
	check(2*testSpan, 1, false)
	must(t, l.PutPiece(0, f.data[:1000]))
	check(10, 1500, true, 1)
	put(t, l, f, 0)
	check(10, 5000, true, 2)
	must(t, l.Release())
}

func TestPiecesRefused(t *testing.T) {
	f := makeFake(3, 2*testSpan+10, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	for name, list := range map[string][]Piece{
		"over a border": {{Offset: testSpan - 1, Length: 2}}, "past the end": {{Offset: 2 * testSpan, Length: 11}}, "empty": {{Offset: 5}},
		"negative": {{Offset: -1, Length: 1}}, "overlap": {{Offset: 0, Length: 10}, {Offset: 9, Length: 1}}, "not sorted": {{Offset: 9, Length: 1}, {Offset: 0, Length: 1}},
		"huge": {{Offset: 1 << 62, Length: 1 << 62}},
	} {
		if l.SetPieces(list, nil) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	must(t, l.SetPieces(piecesOf(f, [2]int64{0, 100}), nil))
	var wrong *PieceError
	for _, b := range [][]byte{bytes.Repeat([]byte{1}, 100), f.data[:99], nil} {
		if err := l.PutPiece(0, b); !errors.As(err, &wrong) || wrong.Span {
			t.Errorf("error %v", err)
		}
	}
	if l.HaveRange(0, 1) {
		t.Error("wrong bytes are believed")
	}
	if l.PutPiece(1, nil) == nil {
		t.Error("a piece that is not in the table is taken")
	}
	must(t, l.Release())
}

// TestLyingPiece: what was believed by a piece's digest is not what the span
// has. It is found when the span comes, which stays.
func TestLyingPiece(t *testing.T) {
	f := makeFake(4, 3*testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	lie := bytes.Repeat([]byte{7}, 512)
	var lies []*PieceError
	must(t, l.SetPieces([]Piece{{Offset: testSpan, Length: 512, Digest: sha256.Sum256(lie)}, {Offset: testSpan + 512, Length: 512, Digest: sha256.Sum256(lie)}},
		func(e *PieceError) { lies = append(lies, e) }))
	must(t, l.PutPiece(0, lie))
	must(t, l.PutPiece(1, lie))
	put(t, l, f, 0)
	if len(lies) != 0 {
		t.Fatal("another span tells")
	}
	put(t, l, f, 1, 2)
	if len(lies) != 1 || !lies[0].Span || lies[0].Offset != testSpan {
		t.Errorf("told of %v", lies)
	}
	checkBelieved(t, l, f)
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
}

// TestSpanOfPieces: a span that is here in pieces needs no transfer, unless they
// lie.
func TestSpanOfPieces(t *testing.T) {
	f := makeFake(5, 2*testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	wrong := bytes.Clone(f.data)
	wrong[testSpan+5] ^= 1
	g := &fake{data: wrong}
	list := piecesOf(g, [2]int64{0, 2048}, [2]int64{2048, testSpan - 2048}, [2]int64{testSpan, testSpan})
	told := 0
	must(t, l.SetPieces(list, func(*PieceError) { told++ }))
	for i, p := range list {
		must(t, l.PutPiece(i, g.piece(p)))
	}
	for i, want := range []bool{true, false} {
		if !l.Suspect(i) {
			t.Errorf("span %d is not looked at", i)
		}
		if ok, err := l.Recheck(i); ok != want || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	if l.Suspect(1) {
		t.Error("a span that is not its pieces is looked at for ever")
	}
	put(t, l, f, 1)
	if told != 1 {
		t.Errorf("told of a lie %d times", told)
	}
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
}

// TestPiecesAreNotRecorded: what is believed by pieces is believed anew, from
// the disk, after a restart.
func TestPiecesAreNotRecorded(t *testing.T) {
	dir := t.TempDir()
	f := makeFake(6, 2*testSpan, testSpan)
	s := openStore(t, dir, boot1)
	l := acquire(t, s, f)
	list := piecesOf(f, [2]int64{100, 1000}, [2]int64{2000, 100}, [2]int64{testSpan, 500})
	must(t, l.SetPieces(list, nil))
	must(t, l.PutPiece(0, f.piece(list[0])))
	must(t, l.PutPiece(2, f.piece(list[2])))
	path := l.Path()
	must(t, l.Release())
	must(t, s.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	b[testSpan+1] ^= 1
	must(t, os.WriteFile(path, b, 0o600))
	l = acquire(t, openStore(t, dir, boot1), f)
	if l.HaveRange(100, 1) {
		t.Error("believed before it was looked at")
	}
	must(t, l.SetPieces(list, nil))
	for i, want := range []bool{true, false, false} {
		if got, err := l.RecheckPiece(i); got != want || err != nil {
			t.Errorf("piece %d: %v, %v", i, got, err)
		}
	}
	checkBelieved(t, l, f)
	must(t, l.Release())
}

// TestForgottenSpanForgetsPieces: who takes a span back takes its pieces back.
func TestForgottenSpanForgetsPieces(t *testing.T) {
	f := makeFake(7, 2*testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	list := piecesOf(f, [2]int64{0, 1000}, [2]int64{testSpan, 1000})
	must(t, l.SetPieces(list, nil))
	for i, p := range list {
		must(t, l.PutPiece(i, f.piece(p)))
	}
	put(t, l, f, 0)
	l.syncMu.Lock()
	l.forget(func(i int) bool { return i == 0 })
	l.syncMu.Unlock()
	if l.HaveRange(0, 1) || !l.HaveRange(testSpan, 1000) {
		t.Error("the wrong pieces are forgotten")
	}
	must(t, l.Release())
}

func TestPiecesConcurrent(t *testing.T) {
	f := makeFake(8, 20*testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	var ranges [][2]int64
	for i := range int64(80) {
		ranges = append(ranges, [2]int64{i * testSpan / 4, testSpan / 4})
	}
	list := piecesOf(f, ranges...)
	must(t, l.SetPieces(list, func(e *PieceError) { t.Error(e) }))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range list {
				i = (i*7 + w*13) % len(list)
				if err := l.PutPiece(i, f.piece(list[i])); err != nil {
					t.Error(err)
				}
				if p := list[i]; !l.HaveRange(p.Offset, p.Length) {
					t.Errorf("piece %d is not here", i)
				}
			}
		})
		wg.Go(func() {
			for i := range f.meta.Spans() {
				if i%3 == w {
					if err := l.Put(i, f.span(i)); err != nil {
						t.Error(err)
					}
				} else if _, err := l.Recheck(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range f.meta.Spans() {
		if ok, err := l.Recheck(i); !ok || err != nil {
			t.Errorf("span %d: %v, %v", i, ok, err)
		}
	}
	must(t, l.Finish(t.Context()))
	must(t, l.Release())
}

// TestPieceOfEarlierTable: who still has a piece of a table that was replaced does not write it over what is believed by the new one.
func TestPieceOfEarlierTable(t *testing.T) {
	f := makeFake(9, testSpan, testSpan)
	l := acquire(t, openStore(t, t.TempDir(), boot1), f)
	wrong := bytes.Repeat([]byte{1}, 100)
	must(t, l.SetPieces([]Piece{{Offset: 0, Length: 100, Digest: sha256.Sum256(wrong)}}, nil))
	earlier := l.pieces.Load()
	list := piecesOf(f, [2]int64{0, 100})
	must(t, l.SetPieces(list, nil))
	must(t, l.PutPiece(0, f.piece(list[0])))
	must(t, l.lockPiece(earlier, &earlier.list[0], func() error {
		t.Error("written")
		return nil
	}))
	must(t, l.Release())
}

// TestRevoke: whoever relies on what is here is told when it is not any more, whatever the reason.
func TestRevoke(t *testing.T) {
	f := makeFake(9, 4*testSpan, testSpan)
	ranges := [][2]int64{{0, testSpan}, {testSpan, 1000}}
	broken := errors.New("disk is broken")
	for name, c := range map[string]struct {
		span bool // a span is here as well
		take func(*Store, *Layer) error
		want error
	}{
		"pieces dropped":       {false, func(_ *Store, l *Layer) error { l.DropPieces(); return nil }, nil},
		"pieces replaced":      {false, func(_ *Store, l *Layer) error { return l.SetPieces(piecesOf(f, ranges...), nil) }, nil},
		"quarantine":           {true, func(s *Store, l *Layer) error { return s.quarantine(l, broken) }, nil},
		"sync fails":           {true, func(_ *Store, l *Layer) error { return l.Sync() }, broken},
		"sync of pieces fails": {false, func(_ *Store, l *Layer) error { return l.Sync() }, broken},
		"last sync fails":      {false, func(_ *Store, l *Layer) error { return l.Release() }, broken},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), boot1)
			l := acquire(t, s, f)
			told := 0
			l.OnRevoke(func() {
				told++
				if l.HaveRange(testSpan, 1000) {
					t.Error("told before it is so")
				}
			})
			list := piecesOf(f, ranges...)
			must(t, l.SetPieces(list, nil))
			for i, p := range list {
				must(t, l.PutPiece(i, f.piece(p)))
			}
			if c.span {
				put(t, l, f, 2)
			}
			if told > 0 {
				t.Fatal("told of what came")
			}
			s.fdatasync = func(*os.File) error { return broken }
			if err := c.take(s, l); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if told == 0 || l.HaveRange(testSpan, 1000) || l.HaveRange(2*testSpan, 1) {
				t.Errorf("told %d times, here: %v, %v", told, l.HaveRange(testSpan, 1000), l.HaveRange(2*testSpan, 1))
			}
		})
	}
}
