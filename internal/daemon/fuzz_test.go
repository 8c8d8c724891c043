package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/thaw-project/thaw/internal/daemon/api"
	"github.com/thaw-project/thaw/internal/hydrate"
	"github.com/thaw-project/thaw/internal/oci"
)

// FuzzHandler: whatever comes over the socket is answered, with JSON, and leaves
// nothing behind. The calls are of root, whose registries are all gone.
func FuzzHandler(f *testing.F) {
	f.Add("POST", "/v1/mounts", []byte(`{"image":"oci:/nowhere:x","container":"../x","dir":"","mode":"eager"}`))
	f.Add("POST", "/v1/mounts", []byte(`{"image":"127.0.0.1:1/a@sha256:../..","dir":"/etc","pull":"never","background":-9223372036854775808}`))
	f.Add("POST", "/v1/pull", []byte(`{"image":"a","index":"require","pull":"never","dockerConfig":"\u0000"}`))
	f.Add("GET", "/v1/mounts/..%2f..%2fx?wait=hurry", []byte(nil))
	f.Add("DELETE", "/v1/mounts?name=/", []byte(nil))
	f.Add("DELETE", "/v1/layers?name=sha256:../../x", []byte(nil))
	f.Add("GET", "/v1/layers", []byte(nil))
	f.Add("GET", "/v1/status", []byte(nil))
	f.Add("POST", "/v1/stop?force=x", []byte(nil))
	f.Add("POST", "/v1/gc", []byte("{"))
	f.Add("POST", "/v1/mounts", []byte(`{"image":"oci:/nowhere:x","record":{"entrypoint":null,"args":[],"ageNs":-1,"ready":true}}`))
	f.Add("POST", "/v1/mounts/x/times", []byte(`{"createdNs":-1}`))
	f.Add("GET", "/v1/traces", []byte(nil))
	f.Add("GET", "/v1/trace?name=../../x", []byte(nil))
	f.Add("GET", "/v1/trace/file?name=sha256:../../x", []byte(nil))
	f.Add("DELETE", "/v1/traces?name=", []byte(nil))
	d := openDaemon(f, f.TempDir())
	d.ctx = f.Context()
	d.sched = hydrate.New(hydrate.Options{Log: d.log})
	f.Cleanup(d.sched.Close)
	handler := d.handler()
	f.Fuzz(func(t *testing.T, method, target string, body []byte) {
		if strings.ContainsAny(target, " \r\n") || !strings.HasPrefix(target, "/v1/") || json.Valid(body) && network(body) {
			return
		}
		req, err := http.NewRequestWithContext(t.Context(), method, "http://thaw"+target, bytes.NewReader(body))
		if err != nil {
			return
		}
		req = req.WithContext(context.WithValue(req.Context(), peerKey{}, &unix.Ucred{Pid: int32(os.Getpid()), Uid: 0}))
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req)
		for line := range bytes.Lines(w.Body.Bytes()) {
			if w.Code < 400 && w.Code != http.StatusMovedPermanently && w.Code != http.StatusTemporaryRedirect && !json.Valid(line) {
				t.Errorf("%d: %q is no JSON", w.Code, line)
			}
		}
		if left, err := os.ReadDir(d.mountsDir()); err == nil && len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		if len(d.mounts) > 0 || len(d.reserved) > 0 || d.calls > 0 {
			t.Errorf("%d mounts, %d reserved directories, %d calls", len(d.mounts), len(d.reserved), d.calls)
		}
	})
}

// network reports whether a request would make the daemon ask a registry.
func network(body []byte) bool {
	var req api.MountRequest
	if json.Unmarshal(body, &req) != nil {
		return false
	}
	ref, err := oci.ParseReference(req.Image)
	return err == nil && !ref.IsLayout() && req.Pull != api.PullNever
}

// FuzzRecords: whatever lies in the state directory as a mount's record or as an
// image, reading it is an error or gives what can be used, and never a mount that
// is not there.
func FuzzRecords(f *testing.F) {
	img, _, _ := someImage(f, "x")
	m := mustJSON(f, record{ID: "m", BootID: bootID(), Finished: true, Mode: api.ModeFanotify, ImageDir: "/nowhere", Manifest: img.digest})
	f.Add(m, mustJSON(f, img.stored(true)))
	f.Add([]byte(`{"id":"m","imageDir":"/"}`), []byte(`{"digest":"sha256","manifest":"e30="}`))
	d := openDaemon(f, f.TempDir())
	dir := filepath.Join(d.mountsDir(), "m")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	path := d.imagePath(someRef)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, mount, image []byte) {
		for name, b := range map[string][]byte{filepath.Join(dir, "mount.json"): mount, filepath.Join(dir, "image.json"): image, path: image} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		records, err := d.readRecords()
		if err != nil || len(records) != 1 || records[0].ID != "m" {
			t.Fatalf("records %v, %v", records, err)
		}
		if d.reload(records[0], nil) == nil {
			t.Error("a mount that is not there was taken over")
		}
		if known := d.knownImage(someRef); known != nil && len(known.Layers) != len(known.Config.RootFS.DiffIDs) {
			t.Error("an image with other layers than diffIDs")
		}
	})
}
