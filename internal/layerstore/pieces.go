package layerstore

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// Piece is a range of a layer's tar that is believed by a digest of its own,
// ahead of the span that it is a part of.
type Piece struct {
	Offset, Length int64
	Digest         [32]byte // sha256
}

func (p *Piece) end() int64 { return p.Offset + p.Length }

// PieceError says that the bytes of a piece are not those its table promises:
// they came damaged, or (Span) the verified span shows that the table lied.
type PieceError struct {
	Layer          digest.Digest
	Offset, Length int64
	Span           bool // the piece was believed, and the span it is in has other bytes
}

func (e *PieceError) Error() string {
	if e.Span {
		return fmt.Sprintf("layer %s: bytes %d to %d were believed by the digest of a piece, and their span has others", e.Layer, e.Offset, e.Offset+e.Length)
	}
	return fmt.Sprintf("layer %s: bytes %d to %d do not have the digest of their piece", e.Layer, e.Offset, e.Offset+e.Length)
}

// pieces is a layer's table of pieces. A layer has one at most, and may be given
// another in its place: bits belong to the table they were set in.
type pieces struct {
	list []Piece // by offset, not overlapping, none over the border of a span
	have []atomic.Uint64
	lied func(*PieceError)
	once sync.Once

	mu      sync.Mutex   // guards doubted
	doubted map[int]bool // spans whose pieces are here and do not make up the span
}

func (p *pieces) has(i int) bool { return p.have[i>>6].Load()&(1<<(i&63)) != 0 }

// from returns the first piece that ends after off.
func (p *pieces) from(off int64) int {
	i, _ := slices.BinarySearchFunc(p.list, off, func(q Piece, off int64) int {
		if q.end() <= off {
			return -1
		}
		return 1
	})
	return i
}

// covered reports whether pieces that are here cover [off, end).
func (p *pieces) covered(off, end int64) bool {
	for i := p.from(off); off < end; i++ {
		if i == len(p.list) || p.list[i].Offset > off || !p.has(i) {
			return false
		}
		off = p.list[i].end()
	}
	return true
}

// SetPieces gives the layer a table of pieces, in place of any it had; none of
// them is here until PutPiece or RecheckPiece says so. They are sorted by offset,
// do not overlap and do not cross spans. What is here of them is not recorded on
// disk. lied is called once, from Put, if a span that was verified shows that a
// piece that had been believed is wrong; it must not block.
func (l *Layer) SetPieces(list []Piece, lied func(*PieceError)) error {
	end := int64(0)
	for i := range list {
		p := &list[i]
		if p.Offset < end || p.Length <= 0 || p.Length > l.meta.TarBytes-p.Offset || p.Offset/l.meta.SpanBytes != (p.end()-1)/l.meta.SpanBytes {
			return fmt.Errorf("piece of %d bytes at %d does not fit in layer %s", p.Length, p.Offset, l.meta.Blob)
		}
		end = p.end()
	}
	l.swapPieces(&pieces{list: list, have: make([]atomic.Uint64, bitmapWords(len(list))), lied: lied})
	return nil
}

// DropPieces forgets the table of pieces: only spans count from now on.
func (l *Layer) DropPieces() { l.swapPieces(nil) }

func (l *Layer) swapPieces(p *pieces) {
	if l.pieces.Swap(p) != nil {
		l.revoke()
	}
}

// HavePiece reports whether piece i of the table is here, by itself or in its span.
func (l *Layer) HavePiece(i int) bool {
	p := l.pieces.Load()
	return p != nil && i >= 0 && i < len(p.list) && (p.has(i) || l.Have(int(p.list[i].Offset/l.meta.SpanBytes)))
}

// MissingPieces returns the pieces that have to come before [off, off+n) is here,
// by their numbers, and whether they are enough for that.
func (l *Layer) MissingPieces(off, n int64) (missing []int, enough bool) {
	p := l.pieces.Load()
	if p == nil || off < 0 {
		return nil, false
	}
	end := off + min(n, l.meta.TarBytes-off)
	for off < end {
		span := off / l.meta.SpanBytes
		border := min(end, (span+1)*l.meta.SpanBytes)
		if l.Have(int(span)) {
			off = border
			continue
		}
		for i := p.from(off); off < border; i++ {
			if i == len(p.list) || p.list[i].Offset > off {
				return missing, false
			}
			if !p.has(i) {
				missing = append(missing, i)
			}
			off = p.list[i].end()
		}
	}
	return missing, true
}

// PutPiece verifies the bytes of piece i, writes them and then believes them. A
// piece that is here is left alone, and so is one without a table any more. Wrong
// bytes are *PieceError, a write that fails *WriteError.
func (l *Layer) PutPiece(i int, data []byte) error {
	p := l.pieces.Load()
	if p == nil || l.HavePiece(i) {
		return nil
	}
	if i < 0 || i >= len(p.list) {
		return fmt.Errorf("layer %s has no piece %d", l.meta.Blob, i)
	}
	piece := &p.list[i]
	if int64(len(data)) != piece.Length || sha256.Sum256(data) != piece.Digest {
		return &PieceError{Layer: l.meta.Blob, Offset: piece.Offset, Length: piece.Length}
	}
	return l.lockPiece(p, piece, func() error {
		if n, err := l.file.WriteAt(data, piece.Offset); err != nil {
			return &WriteError{Layer: l.meta.Blob, Span: int(piece.Offset / l.meta.SpanBytes), Path: l.Path(), MissingBytes: int64(len(data) - n), Err: err}
		}
		l.put.Add(int64(len(data)))
		p.believe(i)
		l.changes.Add(1) // or no Sync would find out that the disk did not take it
		return nil
	})
}

// RecheckPiece looks at what the disk has of piece i, from an earlier daemon of
// this boot perhaps, and believes it if its digest is right. It reports whether
// the piece is here now.
func (l *Layer) RecheckPiece(i int) (here bool, err error) {
	p := l.pieces.Load()
	if p == nil || i < 0 || i >= len(p.list) {
		return false, nil
	}
	if l.HavePiece(i) {
		return true, nil
	}
	piece := &p.list[i]
	err = l.lockPiece(p, piece, func() error {
		if !hasData(l.file, piece.Offset, piece.Length) {
			return nil
		}
		bp := spanBuffers.Get().(*[]byte)
		defer spanBuffers.Put(bp)
		buf := grow(bp, piece.Length)
		// As Recheck does: what a failed write-back left in the page cache is not believed.
		if err := dropCache(l.file, piece.Offset, piece.Length); err != nil {
			return fmt.Errorf("recheck piece at %d of layer %s: %w", piece.Offset, l.meta.Blob, err)
		}
		if _, err := l.file.ReadAt(buf, piece.Offset); err != nil {
			return fmt.Errorf("recheck piece at %d of layer %s: %w", piece.Offset, l.meta.Blob, err)
		}
		if sha256.Sum256(buf) == piece.Digest {
			p.believe(i)
		}
		return nil
	})
	return l.HavePiece(i), err
}

// lockPiece runs f where it may touch the bytes of a piece of the table p, unless
// its span is here, or another table in p's place: its pieces may be believed.
func (l *Layer) lockPiece(p *pieces, piece *Piece, f func() error) error {
	span := int(piece.Offset / l.meta.SpanBytes)
	l.putMu.RLock()
	defer l.putMu.RUnlock()
	mu := &l.stripe[span%stripes]
	mu.Lock()
	defer mu.Unlock()
	if l.gone.Load() {
		return l.goneError()
	}
	if l.Have(span) || l.pieces.Load() != p {
		return nil
	}
	return f()
}

// believe sets a bit; the stripe of the piece's span is held.
func (p *pieces) believe(i int) { setBit(p.have, i) }

// comparePieces holds what was believed piece by piece of span i against the
// span's verified bytes. The span's stripe is held.
func (l *Layer) comparePieces(i int, data []byte) {
	p := l.pieces.Load()
	if p == nil {
		return
	}
	off, n := l.meta.Span(i)
	for at := p.from(off); at < len(p.list) && p.list[at].Offset < off+n; at++ {
		q := &p.list[at]
		if p.has(at) && sha256.Sum256(data[q.Offset-off:q.end()-off]) != q.Digest {
			lie := &PieceError{Layer: l.meta.Blob, Offset: q.Offset, Length: q.Length, Span: true}
			p.once.Do(func() {
				l.store.log.Error("a piece lied", "layer", l.meta.Blob, "err", lie)
				if p.lied != nil {
					p.lied(lie)
				}
			})
			return
		}
	}
}

// inPieces reports whether all of span i is here in pieces, as far as is known.
func (l *Layer) inPieces(i int) bool {
	p := l.pieces.Load()
	if p == nil || i < 0 || i >= l.meta.Spans() {
		return false
	}
	off, n := l.meta.Span(i)
	if !p.covered(off, off+n) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.doubted[i]
}

// doubt notes that the pieces of span i are not the span. Whether they lied, or
// the disk did, its verified bytes will show.
func (l *Layer) doubt(i int) {
	p := l.pieces.Load()
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.doubted == nil {
		p.doubted = map[int]bool{}
	}
	p.doubted[i] = true
}

// forgetPieces takes back what is believed of [off, off+n). putMu is held for
// writing.
func (l *Layer) forgetPieces(off, n int64) {
	p := l.pieces.Load()
	if p == nil {
		return
	}
	for i := p.from(off); i < len(p.list) && p.list[i].Offset < off+n; i++ {
		clearBit(p.have, i)
	}
}

// SortPieces puts pieces into the order of a table.
func SortPieces(list []Piece) {
	slices.SortFunc(list, func(a, b Piece) int { return cmp.Compare(a.Offset, b.Offset) })
}
