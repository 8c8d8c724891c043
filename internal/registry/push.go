package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// pushOperation is an operation on the origin with the right to push.
func (r *remote) pushOperation(ctx context.Context, what, reference string) *operation {
	op := r.operation(FromOrigin(ctx), what, reference)
	op.scope = "pull,push"
	return op
}

// PushBlob implements [Repository]: one POST for a place, one PUT of everything
// (distribution-spec, "POST then PUT").
func (r *remote) PushBlob(ctx context.Context, desc v1.Descriptor, open func() (io.ReadCloser, error)) error {
	op := r.pushOperation(ctx, "push blob", desc.Digest.String())
	if err := checkRange(desc, 0, desc.Size); err != nil {
		return op.describe(ctx, &Error{Err: err})
	}
	return r.try(ctx, op, func(ctx context.Context, ep *endpoint) error {
		there, err := r.hasBlob(ctx, ep, desc)
		if there || err != nil {
			return err
		}
		return r.upload(ctx, ep, desc, open)
	})
}

func (r *remote) hasBlob(ctx context.Context, ep *endpoint, desc v1.Descriptor) (bool, error) {
	resp, err := r.request(ctx, ep, http.MethodHead, "blobs/"+desc.Digest.String(), nil)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK, isRedirect(resp):
		return true, nil
	case resp.StatusCode == http.StatusNotFound:
		return false, nil
	}
	return false, answerError(resp, time.Now())
}

func (r *remote) upload(ctx context.Context, ep *endpoint, desc v1.Descriptor, open func() (io.ReadCloser, error)) error {
	resp, err := r.request(ctx, ep, http.MethodPost, "blobs/uploads/", func(req *http.Request) {
		req.ContentLength = 0
		req.Body = http.NoBody
	})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusAccepted {
		return answerError(resp, time.Now())
	}
	resp.Body.Close()
	place, err := r.redirectTarget(resp)
	if err != nil {
		return &Error{URL: cleanURL(resp.Request.URL), Status: resp.StatusCode, Err: fmt.Errorf("start upload: %w", err)}
	}
	return r.put(ctx, withQuery(place, "digest", desc.Digest.String()), desc.Size, open)
}

// put sends the blob's bytes.
func (r *remote) put(ctx context.Context, u *url.URL, size int64, open func() (io.ReadCloser, error)) error {
	body, err := open()
	if err != nil {
		return &Error{Err: fmt.Errorf("open content: %w", err)}
	}
	resp, err := r.send(ctx, http.MethodPut, u, func(req *http.Request) {
		req.Header.Set("Content-Type", "application/octet-stream")
		req.ContentLength = size
		req.Body, req.GetBody = body, open
		if size == 0 {
			body.Close()
			req.Body, req.GetBody = http.NoBody, nil
		}
	})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		e := answerError(resp, time.Now())
		// A place that is gone: a new upload may do. Anything else is final.
		if e.Code == "BLOB_UPLOAD_UNKNOWN" || e.Status == http.StatusNotFound {
			e.Retryable = true
		}
		return e
	}
	return resp.Body.Close()
}

// PushManifest implements [Repository].
func (r *remote) PushManifest(ctx context.Context, tagOrDigest, mediaType string, b []byte) error {
	desc, tag, err := manifestToPush(tagOrDigest, mediaType, b)
	if err == nil && tag != "" {
		err = checkName(tag)
	}
	if err != nil {
		return r.pushOperation(ctx, "push manifest", tagOrDigest).describe(ctx, &Error{Err: err})
	}
	name := desc.Digest.String()
	if tag != "" {
		name = tag
	}
	header, err := r.putManifest(ctx, name, mediaType, b)
	if err != nil {
		return err
	}
	ref, ok := referrerOf(b, desc)
	if !ok || header.Get("OCI-Subject") != "" {
		return nil
	}
	return r.addReferrer(ctx, ref.subject, ref.desc)
}

// putManifest pushes under a name and returns the answer's header.
func (r *remote) putManifest(ctx context.Context, name, mediaType string, b []byte) (http.Header, error) {
	var header http.Header
	err := r.try(ctx, r.pushOperation(ctx, "push manifest", name), func(ctx context.Context, ep *endpoint) error {
		resp, err := r.request(ctx, ep, http.MethodPut, "manifests/"+name, func(req *http.Request) {
			req.Header.Set("Content-Type", mediaType)
			req.ContentLength = int64(len(b))
			req.GetBody = bytesOpener(b)
			req.Body, _ = req.GetBody()
		})
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
			return answerError(resp, time.Now())
		}
		header = resp.Header
		return resp.Body.Close()
	})
	return header, err
}

func bytesOpener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}

// encodeIndex makes an OCI image index.
func encodeIndex(list []v1.Descriptor) ([]byte, error) {
	b, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: list})
	if err != nil {
		return nil, errors.Join(errors.New("encode image index"), err)
	}
	return b, nil
}
