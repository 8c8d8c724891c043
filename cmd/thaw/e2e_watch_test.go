package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/index"
	"github.com/thaw-project/thaw/internal/lab"
	"github.com/thaw-project/thaw/internal/testenv"
	"github.com/thaw-project/thaw/internal/watch"
)

// watcher is a thaw index watch under way.
type watcher struct {
	*process
	url string
}

const watchSecret = "open-sesame"

// watch starts one, with a secret.
func (n *node) watch(args ...string) *watcher {
	n.Helper()
	secret := n.write("secret", watchSecret+"\n")
	p := n.start(append([]string{"index", "watch", "--listen", "127.0.0.1:0", "--secret-file", secret, "--json", "--backoff", "20ms", "--log-level", "debug"}, args...)...)
	return &watcher{p, "http://" + p.address()}
}

// address is in the first line that a server prints with --json.
func (p *process) address() string {
	p.node.Helper()
	p.prints("\n")
	var first struct{ Address string }
	if err := json.Unmarshal([]byte(strings.SplitN(p.out.String(), "\n", 2)[0]), &first); err != nil || first.Address == "" {
		p.node.Fatalf("%v: %s", err, p.out)
	}
	return first.Address
}

// end interrupts it, which has to be all that is needed.
func (w *watcher) end() {
	w.node.Helper()
	w.signal(unix.SIGINT)
	if r := w.wait(); r.code != 0 {
		w.node.Error(r)
	}
}

// became are the lines that it has printed, in short: the image's digest or what
// names has for it, the result and the reason.
func (w *watcher) became(names map[string]string) []string {
	var out []string
	lines := strings.SplitAfter(w.out.String(), "\n")
	for _, line := range lines[1 : len(lines)-1] { // without the address, and what is not a whole line yet
		var o watch.Outcome
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			w.node.Fatalf("line %q: %v", line, err)
		}
		_, d, _ := strings.Cut(o.Image, "@")
		if s, ok := names[d]; ok {
			d = s
		}
		out = append(out, strings.TrimSpace(fmt.Sprint(d, " ", o.Result, " ", o.Reason)))
	}
	return out
}

// notify posts a notification and waits for what becomes of its images.
func (w *watcher) notify(doc string) (results []string) {
	w.node.Helper()
	status, body := w.request(http.MethodPost, "/notify?wait=1m", doc)
	var out struct{ Images []watch.Outcome }
	if err := json.Unmarshal(body, &out); err != nil || status != http.StatusAccepted {
		w.node.Fatalf("%d %s", status, body)
	}
	for _, o := range out.Images {
		results = append(results, strings.TrimSpace(o.Result+" "+string(o.Reason)))
	}
	return results
}

func (w *watcher) request(method, path, doc string) (int, []byte) {
	w.node.Helper()
	req, err := http.NewRequestWithContext(w.node.Context(), method, w.url+path, strings.NewReader(doc))
	if err != nil {
		w.node.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+watchSecret)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.node.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.node.Fatal(err)
	}
	return resp.StatusCode, b
}

// count returns one of the metrics.
func (w *watcher) count(metric string) (n int) {
	w.node.Helper()
	_, b := w.request(http.MethodGet, "/metrics", "")
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, metric+" "); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

// document is a notification as its registry documents it, edited.
func (n *node) document(name string, edits ...string) string {
	n.Helper()
	b, err := os.ReadFile(filepath.Join("../../internal/watch/testdata/notifications", name+".json"))
	if err != nil {
		n.Fatal(err)
	}
	for i := 0; i < len(edits); i += 2 {
		if !bytes.Contains(b, []byte(edits[i])) {
			n.Fatalf("%s has no %s", name, edits[i])
		}
	}
	return strings.NewReplacer(edits...).Replace(string(b))
}

// TestIndexWatch: a real image is pushed to a registry that sends notifications;
// its index is there soon, and a lazy start on another node uses it.
func TestIndexWatch(t *testing.T) {
	t.Parallel()
	testenv.NeedRuntime(t)
	dir, _ := corpus(t, "nginx")
	n := newNode(t)
	w := n.watch()
	registry := n.start("lab", "serve", "--listen", "127.0.0.1:0", "--net", "none", "--json", "--notify", w.url+"/notify", "--notify-authorization", "Bearer "+watchSecret)
	ref := registry.address() + "/team/nginx:1"
	pushCorpus(t, dir, "nginx", ref)
	w.prints(`"result":"indexed"`)
	n.eventually("the index' own notification is known for what it is", func() bool {
		return w.count(`thaw_watch_events_total{format="distribution",decision="own-index"}`) == 1
	})
	line := n.timelineOf(ref, "--index=require")
	if line.Mode != "fanotify" || line.Index != "registry" || line.ReadyMs == nil {
		t.Errorf("timeline %+v", line)
	}
	w.end()
	registry.signal(unix.SIGINT)
	registry.wait()
	if got := w.became(nil); len(got) != 1 {
		t.Errorf("became %v", got)
	}
}

// pushCorpus pushes an image of a layout as others do.
func pushCorpus(t testing.TB, dir, image, ref string) {
	t.Helper()
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Annotations[v1.AnnotationRefName] != image {
			continue
		}
		img, err := idx.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		to, err := name.ParseReference(ref, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(to, img, remote.WithContext(t.Context())); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("no image %s in %s", image, dir)
}

// pushed is what is pushed to a registry by hand.
func (n *smallImage) push(tag, mediaType string, v any) v1.Descriptor {
	n.Helper()
	b := marshal(n, v)
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := n.repo().PushManifest(n.Context(), tag, mediaType, b); err != nil {
		n.Fatal(err)
	}
	return d
}

func (n *smallImage) pushBlob(mediaType string, b []byte) v1.Descriptor {
	n.Helper()
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := n.repo().PushBlob(n.Context(), d, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		n.Fatal(err)
	}
	return d
}

// imageFor is the small image's manifest with a config for a platform.
func (n *smallImage) imageFor(arch string) v1.Manifest {
	n.Helper()
	m := n.manifest
	var config v1.Image
	b, err := os.ReadFile(filepath.Join(n.layout, v1.ImageBlobsDir, "sha256", m.Config.Digest.Encoded()))
	if err == nil {
		err = json.Unmarshal(b, &config)
	}
	if err != nil {
		n.Fatal(err)
	}
	config.Architecture = arch
	m.Config = n.pushBlob(v1.MediaTypeImageConfig, marshal(n, config))
	return m
}

// TestIndexWatchPlatforms: of an image index every platform that is wanted is
// indexed, once; what lies beside and among images is not, and nothing that this
// pushes makes it push again.
func TestIndexWatchPlatforms(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	w := n.watch("--min-size", "1MB", "--platform", "linux/amd64", "--platform", "arm64", "--workers", "2")
	s, err := lab.New(lab.Options{Dir: n.layout, Notify: []lab.Endpoint{{URL: w.url + "/notify", Authorization: "Bearer " + watchSecret}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	n.lab, n.ref = s, s.Addr()+"/small"
	names := map[string]string{}
	put := func(what, tag string, m any) v1.Descriptor {
		d := n.push(tag, v1.MediaTypeImageManifest, m)
		names[d.Digest.String()] = what
		return d
	}
	at := func(d v1.Descriptor, arch, variant string) v1.Descriptor {
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch, Variant: variant}
		if arch == "unknown" {
			d.Platform.OS = arch
		}
		return d
	}
	empty := n.pushBlob(v1.MediaTypeEmptyJSON, []byte("{}"))
	attestation := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, Config: n.imageFor("unknown").Config,
		Layers: []v1.Descriptor{n.pushBlob("application/vnd.in-toto+json", []byte("{} "))}}
	amd, arm := put("amd64", "", n.imageFor("amd64")), put("arm64", "", n.imageFor("arm64"))
	s390x, built := put("s390x", "", n.imageFor("s390x")), put("attestation", "", attestation)
	multi := n.push("multi", v1.MediaTypeImageIndex, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{at(amd, "amd64", ""), at(arm, "arm64", "v8"), at(s390x, "s390x", ""), at(built, "unknown", "")}})
	names[multi.Digest.String()] = "multi"
	signature := put("signature", "", v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.dev.cosign.artifact.sig.v1+json",
		Config: empty, Layers: []v1.Descriptor{empty}, Subject: &amd})
	tiny := n.manifest
	tiny.Layers, tiny.Annotations = nil, map[string]string{"no": "layers"}
	none := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers"}}
	tiny.Config, tiny.Layers = n.pushBlob(v1.MediaTypeImageConfig, marshal(t, none)), []v1.Descriptor{}
	put("tiny", "tiny", tiny)

	want := []string{
		"amd64 indexed", "arm64 indexed", "s390x skipped other-platform", "attestation skipped not-an-image", "signature skipped not-an-image", "tiny skipped too-small",
		// Again, of the image index. Whichever of the two comes first indexes it; both do it together if they come at the same time.
		"amd64 indexed", "arm64 indexed", "s390x skipped other-platform", "attestation skipped not-an-image",
	}
	slices.Sort(want)
	n.eventually("all are looked at", func() bool { return len(w.became(names)) >= len(want) })
	n.eventually("its own two are known", func() bool {
		return w.count(`thaw_watch_events_total{format="distribution",decision="own-index"}`) == 2 && w.count("thaw_watch_queue_images") == 0
	})
	got := w.became(names)
	for i := range got {
		got[i] = strings.Replace(got[i], "skipped already-indexed", "indexed", 1)
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, d := range []v1.Descriptor{amd, arm, s390x, signature} {
		found, err := n.repo().Referrers(t.Context(), d.Digest, index.ArtifactType)
		if wantIndexes := map[string]int{"amd64": 1, "arm64": 1}[names[d.Digest.String()]]; err != nil || len(found) != wantIndexes {
			t.Errorf("%s has %d indexes, want %d; %v", names[d.Digest.String()], len(found), wantIndexes, err)
		}
	}
	if _, status := w.request(http.MethodGet, "/status", ""); !bytes.Contains(status, []byte(`"reason":"too-small","detail":"layers of 0B, less than 1MB"`)) {
		t.Errorf("status %s", status)
	}
	w.end()
}

// TestIndexWatchDocuments: ECR's and Harbor's notifications, as documented; an
// image most of which is read at its start is not indexed.
func TestIndexWatchDocuments(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	image := n.lab.Images()[0].Digest.String()
	ecr := n.document("ecr-push", "my-repository-name", "small", "sha256:7f5b2640fe6fb4f46592dfd3410c4a79dac4f89e4782432e0378abcd12345678", image)
	harbor := n.document("harbor-push", "test-webhook/debian:latest", "small:latest", "test-webhook/debian", "small", "hub.harbor.com", n.lab.Addr(),
		"sha256:8a9e9863dbb6e10edb5adfe917c00da84e1700fa76e7ed02476aa6e6fb8ee0d8", image)
	events := n.document("harbor-cloudevents", "test-webhook/debian", "small", "hub.harbor.com", n.lab.Addr(),
		"sha256:8a9e9863dbb6e10edb5adfe917c00da84e1700fa76e7ed02476aa6e6fb8ee0d8", image)
	b, err := os.ReadFile(n.writeTrace(allReads...))
	if err != nil {
		t.Fatal(err)
	}
	traces := filepath.Join(n.root, "traces")
	n.keepTrace(traces, b)
	w := n.watch("--min-size", "1", "--registry", n.lab.Addr(), "--bundle", "--attempts", "3")
	expect := func(what, doc string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, w.notify(doc)); diff != "" {
			t.Errorf("%s: %s\n%s", what, diff, w.err)
		}
	}
	expect("all is read", ecr, "skipped most-bytes-read")
	if err := os.RemoveAll(traces); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(n.writeTrace(someReads...)); err != nil {
		t.Fatal(err)
	}
	n.keepTrace(traces, b)
	setFaults(t, n.lab, "404,first=2,match=/manifests/") // as right after a push, or in a replica
	expect("some is read", ecr, "indexed")
	w.prints(`"bundle":true`)
	if n := w.count("thaw_watch_retries_total"); n != 2 {
		t.Errorf("%d retries", n)
	}
	expect("Harbor", harbor, "skipped already-indexed")
	expect("CloudEvents", events, "skipped already-indexed")
	expect("a digest that is not there", strings.ReplaceAll(ecr, image, string(v1.DescriptorEmptyJSON.Digest)), "skipped gone")
	w.end()
	mnt := n.mkdir()
	n.thaw("mount", "--index=require", "--background=off", n.ref, mnt)
	n.bundled()
	n.sameTree(n.want, mnt)
	n.thaw("umount", mnt)
}

// TestIndexWatchKilled: what was taken is done by the next process.
func TestIndexWatchKilled(t *testing.T) {
	t.Parallel()
	n := newSmallImage(t)
	w := n.watch("--min-size", "1")
	doc := n.document("ecr-push", "my-repository-name", "small", "sha256:7f5b2640fe6fb4f46592dfd3410c4a79dac4f89e4782432e0378abcd12345678", n.lab.Images()[0].Digest.String(),
		"123456789012", "x")
	w.end() // nothing to do
	w = n.watch("--min-size", "1", "--registry", n.lab.Addr())
	setFaults(t, n.lab, "stall=1000")
	if status, b := w.request(http.MethodPost, "/notify", doc); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, b)
	}
	n.eventually("it is at work", func() bool { return w.count("thaw_watch_queue_running_images") == 1 })
	n.refuses(1, "another process has it", "index", "watch", "--listen", "127.0.0.1:0")
	w.signal(unix.SIGKILL)
	w.wait()
	setFaults(t, n.lab)
	w = n.watch("--min-size", "1", "--registry", n.lab.Addr())
	w.prints(`"result":"indexed"`)
	w.end()
	n.thaw("index", "verify", n.ref)
}
