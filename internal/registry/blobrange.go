package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxDiscardBytes is how far into a blob a server without ranges is
	// followed by throwing bytes away.
	maxDiscardBytes = 8 << 20
	// streamBlobBytes is the size from which a whole blob is fetched through
	// parallel ranges.
	streamBlobBytes = 2 << 20
)

// Blob implements [Repository].
func (r *remote) Blob(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	if b, ok := embedded(desc); ok {
		return b, nil
	}
	op := r.operation(ctx, "fetch blob", desc.Digest.String())
	if desc.Size > MaxBlobBytes {
		return nil, op.describe(ctx, &Error{Err: fmt.Errorf("it has %d bytes, more than %d", desc.Size, MaxBlobBytes)})
	}
	for {
		b, err := r.blobOnce(ctx, desc)
		var wrong *DigestError
		if err == nil || !errors.As(err, &wrong) {
			return b, err
		}
		// It hashes wrong: whoever stands between is left out from now on.
		if perr := op.budget.pause(ctx, op.describe(ctx, &Error{Retryable: true, Err: wrong}), true); perr != nil {
			return nil, perr
		}
		ctx = FromOrigin(ctx)
	}
}

func (r *remote) blobOnce(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	if desc.Size >= streamBlobBytes {
		body := Stream(ctx, r, desc, StreamOptions{ChunkBytes: streamBlobBytes / 2})
		defer body.Close()
		b := make([]byte, desc.Size)
		if _, err := io.ReadFull(body, b); err != nil {
			return nil, err
		}
		if _, err := body.Read(make([]byte, 1)); err != io.EOF { // EOF says: verified
			return nil, err
		}
		return b, nil
	}
	body, err := r.ReadRange(ctx, desc, 0, desc.Size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b := make([]byte, desc.Size)
	if _, err := io.ReadFull(body, b); err != nil {
		return nil, err
	}
	return b, verify(desc.Digest, b)
}

// ReadRange implements [Repository].
func (r *remote) ReadRange(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	op := r.operation(ctx, "fetch blob", desc.Digest.String())
	op.what.Offset, op.what.Length = off, n
	if err := checkRange(desc, off, n); err != nil {
		return nil, op.describe(ctx, &Error{Err: err})
	}
	op.skip = func(ep *endpoint) bool { return r.isMissing(ep, desc.Digest) }
	rr := &rangeReader{ctx: ctx, repo: r, op: op, desc: desc, start: off, off: off, end: off + n}
	if n == 0 {
		return rr, nil
	}
	if err := rr.open(); err != nil {
		return nil, err
	}
	return rr, nil
}

// rangeReader reads [off, end) of a blob and opens it again from where it
// broke off.
type rangeReader struct {
	ctx   context.Context // of the call that opened it, which the reader is a part of
	repo  *remote
	op    *operation
	desc  v1.Descriptor
	start int64
	off   int64
	end   int64

	body   io.ReadCloser // nil: to be opened
	left   int64         // bytes that body still has
	ep     *endpoint     // where body comes from
	gotAny bool          // body gave a byte
	err    error         // sticky
}

func (r *rangeReader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.off == r.end:
			r.finish()
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		case r.body == nil:
			if r.err = r.open(); r.err != nil {
				return 0, r.err
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.left)])
		if n > 0 {
			r.off += int64(n)
			r.left -= int64(n)
			r.gotAny = true
			r.op.budget.advance(n)
		}
		if r.off < r.end && (err != nil || r.left == 0) {
			r.err = r.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// broken closes a body that ended early and decides whether to go on.
func (r *rangeReader) broken(err error) error {
	r.body.Close()
	r.body = nil
	if err == nil && r.left == 0 {
		return nil // the server sent a part of the range; ask for the rest
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errShort
	}
	r.op.what.Offset, r.op.what.Length = r.off, r.end-r.off
	e := r.op.describe(r.ctx, &Error{URL: cleanURL(r.ep.url(r.repo.name, "blobs/"+r.desc.Digest.String())), Retryable: r.ctx.Err() == nil, Err: err})
	if r.ctx.Err() != nil {
		e.Err = context.Cause(r.ctx)
		return e
	}
	if !r.gotAny || errors.Is(err, errStalled) {
		r.ep.leaveOut()
	}
	r.repo.client.log.DebugContext(r.ctx, "blob broke off", "digest", r.desc.Digest, "at", r.off, "err", err)
	return r.repo.pause(r.ctx, r.op, e)
}

// finish reads what is behind the last byte (the end of a chunked body), so
// that the connection can be used again, and closes.
func (r *rangeReader) finish() {
	if r.body == nil {
		return
	}
	if r.left == 0 {
		var b [1]byte
		_, _ = r.body.Read(b[:])
	}
	r.body.Close()
	r.body = nil
}

// Close implements io.Closer. Reads after it fail.
func (r *rangeReader) Close() error {
	r.finish()
	if r.err == nil {
		r.err = io.ErrClosedPipe
	}
	return nil
}

// open asks for what is missing.
func (r *rangeReader) open() error {
	r.op.what.Offset, r.op.what.Length = r.off, r.end-r.off
	if err, gone := r.repo.origin().gone(goneQuiet); gone && r.off == r.start && !r.op.budget.own {
		return r.op.describe(r.ctx, &Error{Err: fmt.Errorf("the registry is gone: %w", err)})
	}
	return r.repo.try(r.ctx, r.op, func(ctx context.Context, ep *endpoint) error {
		if r.tooFar() && r.repo.lacksRanges(r.repo.endpointIndex(ep)) {
			return &Error{URL: cleanURL(ep.url(r.repo.name, "blobs/"+r.desc.Digest.String())), Err: ErrNoRanges}
		}
		resp, err := r.repo.openRange(ctx, ep, r.desc.Digest, r.off, r.end)
		if err != nil {
			return err
		}
		left, err := r.accept(resp, ep)
		if err != nil {
			resp.Body.Close()
			return err
		}
		r.body, r.left, r.ep, r.gotAny = resp.Body, left, ep, false
		return nil
	})
}

// accept checks that an answer is the range that is missing, or a beginning of
// it, and returns how long it is.
func (r *rangeReader) accept(resp *http.Response, ep *endpoint) (int64, error) {
	fail := func(err error) (int64, error) {
		return 0, &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Retryable: true, Err: err}
	}
	if mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); strings.EqualFold(strings.TrimSpace(mediaType), "text/html") {
		return fail(errors.New("the server sent a web page in place of the blob"))
	}
	i := r.repo.endpointIndex(ep)
	if resp.StatusCode == http.StatusOK {
		if resp.ContentLength >= 0 && resp.ContentLength != r.desc.Size {
			return fail(fmt.Errorf("the blob has %d bytes there, want %d", resp.ContentLength, r.desc.Size))
		}
		if r.off == 0 && r.end == r.desc.Size {
			return r.desc.Size, nil
		}
		r.repo.noRanges[i].Store(time.Now().UnixNano())
		if r.tooFar() {
			return 0, &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Err: ErrNoRanges}
		}
		if _, err := io.CopyN(io.Discard, resp.Body, r.off); err != nil {
			return fail(fmt.Errorf("skip to the range: %w", err))
		}
		return r.end - r.off, nil
	}
	got, err := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return fail(fmt.Errorf("%w: %w", errRange, err))
	case got.start != r.off || got.end >= r.end,
		got.total >= 0 && got.total != r.desc.Size,
		resp.ContentLength >= 0 && resp.ContentLength != got.length():
		return fail(fmt.Errorf("%w: %.100q with %d bytes, want bytes %d-%d/%d", errRange,
			resp.Header.Get("Content-Range"), resp.ContentLength, r.off, r.end-1, r.desc.Size))
	}
	r.repo.noRanges[i].Store(0)
	return got.length(), nil
}

// tooFar: skipping to the range is not worth while. Who reads from the start
// is streaming, and resumes at any price.
func (r *rangeReader) tooFar() bool { return r.start > 0 && r.off > maxDiscardBytes }

func (r *remote) endpointIndex(ep *endpoint) int {
	for i := range r.eps {
		if r.eps[i] == ep {
			return i
		}
	}
	return len(r.eps) - 1
}

// openRange gets bytes [off, end) of a blob from where the last redirect led, or
// from the endpoint. The answer has status 206 or 200.
func (r *remote) openRange(ctx context.Context, ep *endpoint, dgst digest.Digest, off, end int64) (*http.Response, error) {
	setup := func(req *http.Request) {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
		req.Header.Set("Accept", "*/*")
	}
	if target := r.target(ep, dgst); target != nil && !OriginOnly(ctx) {
		resp, err := r.send(ctx, http.MethodGet, target, setup)
		if err == nil && isContent(resp) {
			return resp, nil
		}
		// Expired, most likely. Whatever it was, the registry knows a better one.
		r.setTarget(ep, dgst, nil)
		if err == nil {
			_, _ = io.CopyN(io.Discard, resp.Body, 16<<10)
			resp.Body.Close()
		} else if context.Cause(ctx) != nil {
			return nil, err
		}
	}
	resp, target, err := r.get(ctx, ep, "blobs/"+dgst.String(), setup)
	if err != nil {
		return nil, err
	}
	if isContent(resp) {
		if target != nil {
			r.setTarget(ep, dgst, target)
		}
		return resp, nil
	}
	e := answerError(resp, time.Now())
	switch {
	case e.Status == http.StatusRequestedRangeNotSatisfiable:
		e.Err = errors.New("the blob is not as long there as its descriptor says")
	case target != nil && e.Status >= 400 && e.Status < 500 && e.Status != http.StatusRequestedRangeNotSatisfiable:
		// A fresh presigned URL that is refused: clocks that disagree, or
		// storage that lags behind. The next one may do.
		e.Retryable = true
	case e.Status == http.StatusNotFound && ep.isMirror():
		r.setMissing(ep, dgst)
	}
	return nil, e
}

func isContent(resp *http.Response) bool {
	return resp.StatusCode == http.StatusPartialContent || resp.StatusCode == http.StatusOK
}

func (r *remote) target(ep *endpoint, dgst digest.Digest) *url.URL {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.blobs[dgst]; s != nil {
		return s.targets[ep]
	}
	return nil
}

func (r *remote) setTarget(ep *endpoint, dgst digest.Digest, u *url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state(dgst).targets[ep] = u
}

func (r *remote) isMissing(ep *endpoint, dgst digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.blobs[dgst]
	return s != nil && s.missing[ep]
}

func (r *remote) setMissing(ep *endpoint, dgst digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state(dgst).missing[ep] = true
}

// state is called with mu held.
func (r *remote) state(dgst digest.Digest) *blobState {
	s := r.blobs[dgst]
	if s == nil {
		if len(r.blobs) >= maxBlobStates {
			clear(r.blobs)
		}
		s = &blobState{targets: make(map[*endpoint]*url.URL), missing: make(map[*endpoint]bool)}
		r.blobs[dgst] = s
	}
	return s
}
