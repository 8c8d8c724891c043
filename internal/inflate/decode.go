package inflate

import (
	"bytes"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A Decoder decodes from access points. Its zero value is ready for use; it
// keeps its tables and buffers from call to call. It is not safe for concurrent use.
type Decoder struct {
	d    *inflater
	skip []byte // scratch for output to discard
	win  [windowBytes]byte
	zstd *zstd.Decoder
	src  bytes.Reader
}

// Decode fills dst with what follows p.OffsetUncompressed, given the blob's
// bytes from p.OffsetCompressed on. It may run over many spans, members and
// frames. src needs to hold no more than what dst takes: up to the
// EndCompressed of the last span wanted. What src says beyond that is not looked at,
// nor are gzip checksums verified, as they cover whole members.
//
// It returns the bytes written, with a *CorruptError unless all of dst was;
// one that wraps io.ErrUnexpectedEOF if src ends too early.
func (dec *Decoder) Decode(dst []byte, p Point, src []byte) (int, error) {
	switch p.Kind {
	case KindPlain:
		n := copy(dst, src)
		if n < len(dst) {
			return n, truncated(p.OffsetCompressed+int64(n), "plain data")
		}
		return n, nil
	case KindMember:
		if p.Skip < 0 {
			return 0, &CorruptError{Offset: p.OffsetCompressed, Reason: "access point skips a negative length"}
		}
		if Detect(src) == Zstd {
			return dec.decodeZstd(dst, p, src)
		}
		return dec.decodeMember(dst, p, src)
	case KindBlock:
		d := dec.inflater(p, src)
		defer d.reset(nil, 0, true) // holds on to nothing of the caller's
		if len(p.Window) > windowBytes {
			return 0, d.corrupt("access point window is too long")
		}
		if err := d.setState(p.State); err != nil {
			return 0, err
		}
		d.window = p.Window
		return d.decode(dst)
	}
	return 0, &CorruptError{Offset: p.OffsetCompressed, Reason: "access point has an unknown kind"}
}

// inflater returns the decoder's inflater, reset to p.
func (dec *Decoder) inflater(p Point, src []byte) *inflater {
	if dec.d == nil {
		dec.d = new(inflater)
	}
	dec.d.reset(src, p.OffsetCompressed, true)
	return dec.d
}

const skipBytes = 256 << 10

// decodeMember decodes from the start of a gzip member.
func (dec *Decoder) decodeMember(dst []byte, p Point, src []byte) (int, error) {
	d := dec.inflater(p, src)
	defer d.reset(nil, 0, true)
	for left := p.Skip; left > 0; {
		if dec.skip == nil {
			dec.skip = make([]byte, skipBytes)
		}
		n, err := d.decode(dec.skip[:min(left, skipBytes)])
		if err != nil {
			return 0, err
		}
		left -= int64(n)
		d.window = d.slideWindow(&dec.win)
	}
	return d.decode(dst)
}

// decode fills out.
func (d *inflater) decode(out []byte) (int, error) {
	d.setOut(out)
	s, err := d.run()
	if err == nil && s != statusFull {
		err = d.truncated("output is still wanted")
	}
	return d.n, err
}

// slideWindow moves the last 32 KiB of the member's output, out included, to
// the end of win, where the window may lie already, and returns them.
func (d *inflater) slideWindow(win *[windowBytes]byte) []byte {
	latest := d.out[d.lo:d.n]
	latest = latest[max(0, len(latest)-windowBytes):]
	old := d.window[max(0, len(d.window)+len(latest)-windowBytes):]
	at := windowBytes - len(latest)
	copy(win[at-len(old):], old)
	copy(win[at:], latest)
	return win[at-len(old):]
}

// decodeZstd decodes from the start of a frame.
func (dec *Decoder) decodeZstd(dst []byte, p Point, src []byte) (int, error) {
	if dec.zstd == nil {
		z, err := newZstd()
		if err != nil {
			return 0, err
		}
		dec.zstd = z
	}
	dec.src.Reset(src)
	defer dec.src.Reset(nil)
	n, err := 0, dec.zstd.Reset(&dec.src)
	if err == nil && p.Skip > 0 {
		_, err = io.CopyN(io.Discard, plainReader{dec.zstd}, p.Skip)
	}
	if err == nil {
		n, err = io.ReadFull(dec.zstd, dst)
	}
	if err == nil {
		return n, nil
	}
	return n, zstdError(err, p.OffsetCompressed+int64(len(src)-dec.src.Len()))
}

// plainReader hides WriteTo, which would decode more than is asked for.
type plainReader struct{ io.Reader }
