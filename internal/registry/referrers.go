package registry

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

const (
	maxReferrerPages = 20
	// maxReferrerLooks bounds the manifests fetched to learn an artifact type
	// that the registry's list does not tell.
	maxReferrerLooks = 16
)

// Referrers implements [Repository]. The origin is asked first: a pull-through
// mirror knows of an image's blobs, seldom of what refers to it.
func (r *remote) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	op := r.operation(ctx, "fetch referrers", subject.String())
	if err := subject.Validate(); err != nil {
		return nil, op.describe(ctx, &Error{Err: err})
	}
	op.eps = op.eps[len(op.eps)-1:]
	var list []v1.Descriptor
	supported := false
	err := r.try(ctx, op, func(ctx context.Context, ep *endpoint) (err error) {
		list, supported, err = r.referrersAPI(ctx, ep, subject, artifactType)
		return err
	})
	if err != nil {
		return nil, err
	}
	if supported {
		r.referrers.Store(true)
	} else if list, err = r.referrersTag(ctx, subject); err != nil {
		return nil, err
	}
	return r.selectReferrers(ctx, list, artifactType)
}

// referrersAPI lists through the API (distribution-spec, "Listing Referrers");
// supported is false where the registry does not have it.
func (r *remote) referrersAPI(ctx context.Context, ep *endpoint, subject digest.Digest, artifactType string) (list []v1.Descriptor, supported bool, err error) {
	u := ep.url(r.name, "referrers/"+subject.String())
	if artifactType != "" {
		// Only a hint: whether it was applied (OCI-Filters-Applied) does not
		// matter, as the list is filtered here in any case.
		q := u.Query()
		q.Set("artifactType", artifactType)
		u.RawQuery = q.Encode()
	}
	query := u.RawQuery
	for range maxReferrerPages {
		resp, err := r.request(ctx, ep, http.MethodGet, "referrers/"+subject.String(), func(req *http.Request) {
			req.URL.RawQuery = query
			req.Header.Set("Accept", v1.MediaTypeImageIndex)
		})
		if err != nil {
			return nil, false, err
		}
		if resp.StatusCode != http.StatusOK {
			e := answerError(resp, time.Now())
			if len(list) == 0 && lacksReferrers(e) {
				return nil, false, nil
			}
			return nil, false, e
		}
		b, err := readBody(resp, oci.MaxManifestBytes)
		if err != nil {
			return nil, false, err
		}
		idx, err := oci.ParseImageIndex(b)
		if err != nil || idx.SchemaVersion != 2 {
			return nil, false, nil // a web page for every path, most likely
		}
		list = append(list, idx.Manifests...)
		next := parseNextLink(resp.Header.Values("Link"), resp.Request.URL)
		if next == nil || !ep.owns(next) || next.Path != resp.Request.URL.Path || len(list) > oci.MaxIndexEntries {
			return list, true, nil
		}
		query = next.RawQuery
	}
	return list, true, nil
}

// lacksReferrers: a 404 by the specification; other refusals are what older
// registries answer to a path they do not know.
func lacksReferrers(e *Error) bool {
	switch e.Status {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusNotImplemented:
		return true
	}
	return false
}

// referrersTag lists through the tag schema; no tag, no referrers.
func (r *remote) referrersTag(ctx context.Context, subject digest.Digest) ([]v1.Descriptor, error) {
	b, _, err := r.Manifest(FromOrigin(ctx), oci.ReferrersTag(subject))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	idx, err := oci.ParseImageIndex(b)
	if err != nil {
		op := r.operation(ctx, "fetch referrers", subject.String())
		return nil, op.describe(ctx, &Error{Err: err})
	}
	return idx.Manifests, nil
}

// selectReferrers filters by artifact type. Some registries list the config's
// media type where the manifest has an artifactType; where that is the empty
// one, the manifest itself is looked at.
func (r *remote) selectReferrers(ctx context.Context, list []v1.Descriptor, artifactType string) ([]v1.Descriptor, error) {
	if artifactType == "" {
		return list, nil
	}
	out := make([]v1.Descriptor, 0, len(list))
	looks := 0
	for _, d := range list {
		if (d.ArtifactType == "" || d.ArtifactType == v1.MediaTypeEmptyJSON) && oci.IsImageManifest(d.MediaType) && looks < maxReferrerLooks {
			looks++
			b, desc, err := r.Manifest(ctx, d.Digest.String())
			if errors.Is(err, ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if ref, ok := referrerOf(b, desc); ok {
				d.ArtifactType = ref.desc.ArtifactType
			}
		}
		out = append(out, d)
	}
	return filterReferrers(out, artifactType), nil
}

// addReferrer puts a manifest into the tag schema's image index of its subject
// (distribution-spec, "Unavailable Referrers API"). Two writers at once may
// overwrite each other, so the result is read back.
func (r *remote) addReferrer(ctx context.Context, subject digest.Digest, desc v1.Descriptor) error {
	tag := oci.ReferrersTag(subject)
	ctx = FromOrigin(ctx)
	for range 4 {
		list, err := r.referrersTag(ctx, subject)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest == desc.Digest }) {
			return nil
		}
		b, err := encodeIndex(append(list, desc))
		if err != nil {
			return err
		}
		if _, err := r.putManifest(ctx, tag, v1.MediaTypeImageIndex, b); err != nil {
			return err
		}
	}
	op := r.operation(ctx, "push referrer", tag)
	return op.describe(ctx, &Error{Retryable: true, Err: errors.New("others keep overwriting the list of referrers")})
}

// withQuery adds a parameter to a URL that may have others.
func withQuery(u *url.URL, key, value string) *url.URL {
	out := *u
	q := out.Query()
	q.Set(key, value)
	out.RawQuery = q.Encode()
	return &out
}
