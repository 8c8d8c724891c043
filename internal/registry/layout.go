package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/thaw-project/thaw/internal/oci"
)

// layout is an OCI layout on disk as a repository
// (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).
// It may be written by other processes at the same time: files are only ever
// added or replaced whole.
type layout struct{ dir string }

func digestOf(alg digest.Algorithm, h hash.Hash) digest.Digest {
	return digest.NewDigestFromBytes(alg, h.Sum(nil))
}

// fail makes the layout's errors look like a registry's.
func (l *layout) fail(op, reference string, err error) error {
	e := &Error{Op: op, Reference: reference, Registry: "oci:" + l.dir, Err: err}
	if errors.Is(err, fs.ErrNotExist) {
		e.Err = fmt.Errorf("%w (%w)", ErrNotFound, err)
	}
	return e
}

func (l *layout) blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("digest %.100q: %w", string(d), err)
	}
	return filepath.Join(l.dir, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}

// readFile reads a regular file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, nil
}

// index reads index.json.
func (l *layout) index() (v1.Index, error) {
	b, err := readFile(filepath.Join(l.dir, v1.ImageIndexFile), oci.MaxManifestBytes)
	if err != nil {
		return v1.Index{}, err
	}
	return oci.ParseImageIndex(b)
}

// Manifest implements [Repository].
func (l *layout) Manifest(ctx context.Context, tagOrDigest string) ([]byte, v1.Descriptor, error) {
	b, desc, err := l.manifest(tagOrDigest)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, v1.Descriptor{}, l.fail("read manifest", tagOrDigest, err)
	}
	return b, desc, nil
}

func (l *layout) manifest(tagOrDigest string) ([]byte, v1.Descriptor, error) {
	dgst := digest.Digest(tagOrDigest)
	if dgst.Validate() != nil {
		idx, err := l.index()
		if err != nil {
			return nil, v1.Descriptor{}, err
		}
		desc, err := findEntry(idx, tagOrDigest)
		if err != nil {
			return nil, v1.Descriptor{}, err
		}
		dgst = desc.Digest
	}
	path, err := l.blobPath(dgst)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	b, err := readFile(path, oci.MaxManifestBytes)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	if err := verify(dgst, b); err != nil {
		return nil, v1.Descriptor{}, err
	}
	mediaType, err := oci.ManifestMediaType(b, "")
	return b, v1.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(b))}, err
}

// findEntry finds a manifest by its ref.name; with an empty tag, the only image
// there is. Referrers and their fallback tags are not images.
func findEntry(idx v1.Index, tag string) (v1.Descriptor, error) {
	var images []v1.Descriptor
	var names []string
	for _, d := range idx.Manifests {
		name := d.Annotations[v1.AnnotationRefName]
		if tag != "" && name == tag {
			return d, nil
		}
		if d.ArtifactType != "" || isReferrersTag(name) {
			continue
		}
		images = append(images, d)
		if name != "" && len(names) < 20 {
			names = append(names, name)
		}
	}
	switch {
	case tag != "":
		return v1.Descriptor{}, fmt.Errorf("%w: index.json has only [%s]", ErrNotFound, strings.Join(names, " "))
	case len(images) == 0:
		return v1.Descriptor{}, fmt.Errorf("%w: index.json has no image", ErrNotFound)
	}
	for _, d := range images[1:] {
		if d.Digest != images[0].Digest {
			return v1.Descriptor{}, fmt.Errorf("index.json has several images, name one as oci:DIR:TAG of [%s]", strings.Join(names, " "))
		}
	}
	return images[0], nil
}

func isReferrersTag(name string) bool {
	alg, hex, ok := strings.Cut(name, "-")
	return ok && digest.Digest(alg+":"+hex).Validate() == nil
}

// Blob implements [Repository].
func (l *layout) Blob(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	if b, ok := embedded(desc); ok {
		return b, nil
	}
	if desc.Size > MaxBlobBytes {
		return nil, l.fail("read blob", desc.Digest.String(), fmt.Errorf("it has %d bytes, more than %d", desc.Size, MaxBlobBytes))
	}
	r, err := l.ReadRange(ctx, desc, 0, desc.Size)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, desc.Size)
	if _, err = io.ReadFull(r, b); err == nil {
		err = verify(desc.Digest, b)
	}
	if err != nil {
		return nil, l.fail("read blob", desc.Digest.String(), err)
	}
	return b, nil
}

// ReadRange implements [Repository].
func (l *layout) ReadRange(ctx context.Context, desc v1.Descriptor, off, n int64) (io.ReadCloser, error) {
	fail := func(err error) (io.ReadCloser, error) {
		return nil, l.fail("read blob", desc.Digest.String(), err)
	}
	if err := ctx.Err(); err != nil {
		return fail(context.Cause(ctx))
	}
	if err := checkRange(desc, off, n); err != nil {
		return fail(err)
	}
	path, err := l.blobPath(desc.Digest)
	if err != nil {
		return fail(err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
	}
	info, err := f.Stat()
	if err == nil && info.Size() != desc.Size {
		err = fmt.Errorf("the file has %d bytes, its descriptor says %d", info.Size(), desc.Size)
	}
	if err != nil {
		f.Close()
		return fail(err)
	}
	return &fileRange{SectionReader: io.NewSectionReader(f, off, n), ctx: ctx, file: f, counters: counters(ctx)}, nil
}

// fileRange is a range of a blob on disk. A file that shrinks meanwhile is an
// error, not an end.
type fileRange struct {
	*io.SectionReader
	ctx      context.Context // of the call that opened it
	file     *os.File
	counters []*Counter
	pos      int64
}

func (r *fileRange) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := r.SectionReader.Read(p)
	r.pos += int64(n)
	for _, c := range r.counters {
		c.BytesRead.Add(int64(n))
	}
	if err == io.EOF && r.pos < r.Size() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *fileRange) Close() error { return r.file.Close() }

// Referrers implements [Repository]: index.json's own entries first, then
// those of the fallback tag.
func (l *layout) Referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]v1.Descriptor, error) {
	idx, err := l.index()
	if err != nil {
		return nil, l.fail("read referrers", subject.String(), err)
	}
	var out []v1.Descriptor
	seen := make(map[digest.Digest]bool)
	for _, d := range idx.Manifests {
		if ctx.Err() != nil {
			return nil, l.fail("read referrers", subject.String(), context.Cause(ctx))
		}
		if d.Annotations[v1.AnnotationRefName] == oci.ReferrersTag(subject) {
			b, _, err := l.manifest(d.Digest.String())
			if err != nil {
				return nil, l.fail("read referrers", subject.String(), err)
			}
			fallback, err := oci.ParseImageIndex(b)
			if err != nil {
				return nil, l.fail("read referrers", subject.String(), err)
			}
			for _, d := range fallback.Manifests {
				out = l.appendReferrer(out, seen, d, subject)
			}
			continue
		}
		out = l.appendReferrer(out, seen, d, subject)
	}
	return filterReferrers(out, artifactType), nil
}

// appendReferrer adds d if its manifest is there and has the subject.
func (l *layout) appendReferrer(out []v1.Descriptor, seen map[digest.Digest]bool, d v1.Descriptor, subject digest.Digest) []v1.Descriptor {
	if seen[d.Digest] || oci.IsImageIndex(d.MediaType) {
		return out
	}
	seen[d.Digest] = true
	b, desc, err := l.manifest(d.Digest.String())
	if err != nil {
		return out // not every entry has to be here, or of a kind we know
	}
	if got, ok := referrerOf(b, desc); ok && got.subject == subject {
		return append(out, got.desc)
	}
	return out
}

// referrer is what a referrers list says about a manifest.
type referrer struct {
	subject digest.Digest
	desc    v1.Descriptor
}

// referrerOf reads subject, artifact type and annotations from a manifest, as
// the specification has a registry do for its list.
func referrerOf(b []byte, desc v1.Descriptor) (referrer, bool) {
	var m struct {
		ArtifactType string            `json:"artifactType"`
		Subject      *v1.Descriptor    `json:"subject"`
		Config       v1.Descriptor     `json:"config"`
		Annotations  map[string]string `json:"annotations"`
	}
	if json.Unmarshal(b, &m) != nil || m.Subject == nil {
		return referrer{}, false
	}
	desc.ArtifactType, desc.Annotations = m.ArtifactType, m.Annotations
	if desc.ArtifactType == "" {
		desc.ArtifactType = m.Config.MediaType
	}
	return referrer{subject: m.Subject.Digest, desc: desc}, true
}

func filterReferrers(list []v1.Descriptor, artifactType string) []v1.Descriptor {
	if artifactType == "" {
		return list
	}
	var out []v1.Descriptor
	for _, d := range list {
		if d.ArtifactType == artifactType {
			out = append(out, d)
		}
	}
	return out
}
