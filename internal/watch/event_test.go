package watch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/oci"
)

// recorded reads a notification as its registry documents it.
func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "notifications", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// told is an event in short: the image, or the reason, and what artifact it is.
func told(e Event) string {
	s := ""
	if e.Image != (oci.Reference{}) {
		s = e.Image.String()
	}
	return strings.TrimSpace(s + " " + string(e.Reason) + " " + e.ArtifactType)
}

func TestDecode(t *testing.T) {
	const (
		docker = "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf"
		blob   = "sha256:c3b3692957d439ac1928219a83fac91e7bf96c153725526874673ae1f2023f8d"
		ecr    = "sha256:7f5b2640fe6fb4f46592dfd3410c4a79dac4f89e4782432e0378abcd12345678"
		harbor = "sha256:8a9e9863dbb6e10edb5adfe917c00da84e1700fa76e7ed02476aa6e6fb8ee0d8"
	)
	for _, c := range []struct {
		name, host, format string
		want               []string
	}{
		{"distribution-push", "", FormatDistribution, []string{"example.com/library/test:1.2@" + docker, "example.com/library/test@" + blob + " not-an-image"}},
		{"distribution-push", "registry.lan:5000", FormatDistribution, []string{"registry.lan:5000/library/test:1.2@" + docker, "registry.lan:5000/library/test@" + blob + " not-an-image"}},
		{"distribution-pull", "", FormatDistribution, []string{"not-a-push"}},
		{"distribution-delete", "", FormatDistribution, []string{"not-a-push"}},
		{"ecr-push", "", FormatECR, []string{"123456789012.dkr.ecr.us-west-2.amazonaws.com/my-repository-name:latest@" + ecr}},
		{"ecr-push-artifact", "", FormatECR, []string{"123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/team/app@" + ecr + "  application/vnd.thaw.index.v1"}},
		{"ecr-pull-through", "", FormatECR, []string{"not-a-push"}},
		{"harbor-push", "", FormatHarbor, []string{"hub.harbor.com/test-webhook/debian:latest@" + harbor}},
		{"harbor-cloudevents", "", FormatHarbor, []string{"hub.harbor.com/test-webhook/debian@" + harbor}},
		{"harbor-scan", "", FormatHarbor, []string{"not-a-push"}},
	} {
		format, events, err := Decode(recorded(t, c.name), c.host)
		if err != nil || format != c.format {
			t.Errorf("%s: %s, %v", c.name, format, err)
			continue
		}
		var got []string
		for _, e := range events {
			got = append(got, told(e))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s with host %q: %s", c.name, c.host, diff)
		}
	}
}

// TestDecodeHostile: what names another host, path or digest than it seems to is
// malformed, alone; what is no notification is an error.
func TestDecodeHostile(t *testing.T) {
	good := string(recorded(t, "distribution-push"))
	for name, edit := range map[string][2]string{
		"digest":         {"sha256:fea8895f", "sha256:xea8895f"},
		"short digest":   {`"digest": "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf"`, `"digest": "sha256:fea8"`},
		"sha512":         {`"digest": "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf"`, `"digest": "sha512:` + strings.Repeat("a", 128) + `"`},
		"no digest":      {`"digest": "sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf",`, ""},
		"up":             {`"repository": "library/test"`, `"repository": "../../token"`},
		"no repository":  {`"repository": "library/test"`, `"repository": ""`},
		"upper case":     {`"repository": "library/test"`, `"repository": "LIBRARY/test"`},
		"another digest": {`"repository": "library/test"`, `"repository": "test@sha256:` + strings.Repeat("a", 64) + `"`},
		"number":         {`"repository": "library/test"`, `"repository": 7`},
		"user":           {`"url": "https://example.com/v2`, `"url": "https://user@:80/v2`},
		"oci layout":     {`"url": "https://example.com/v2`, `"url": "https://oci:/v2`},
		"another name":   {`"url": "https://example.com/v2/library/test/manifests`, `"url": "https://index.docker.io/v2/library/test/manifests`},
	} {
		doc := strings.Replace(good, edit[0], edit[1], 1)
		if doc == good {
			t.Fatalf("%s: nothing to edit", name)
		}
		_, events, err := Decode([]byte(doc), "")
		if err != nil || len(events) != 2 || events[0].Reason != ReasonMalformed || events[0].Detail == "" || events[1].Reason != ReasonNotImage {
			t.Errorf("%s: %+v, %v", name, events, err)
		}
	}
	for name, doc := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "object": "{}", "number": "7", "half": `{"events": [`,
		"events": `{"events": 7}`, "harbor": `{"type": "PUSH_ARTIFACT", "event_data": 7}`,
		"ecr":  `{"detail-type": "ECR Image Action", "detail": 7}`,
		"many": `{"events": [` + strings.Repeat("{},", maxEvents) + `{}]}`,
	} {
		if format, events, err := Decode([]byte(doc), ""); err == nil {
			t.Errorf("%s is taken as %s: %+v", name, format, events)
		}
	}
	for _, region := range []string{"evil.example/x?", "evil.example/x", "evil.example", ""} {
		ecr := strings.Replace(string(recorded(t, "ecr-push")), "us-west-2", region, 1)
		if _, events, err := Decode([]byte(ecr), ""); err != nil || events[0].Reason != ReasonMalformed {
			t.Errorf("region %q: %+v, %v", region, events, err)
		}
	}
}

// FuzzDecode: whatever comes, an event names an image that parses to itself, or
// has a reason.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob(filepath.Join("testdata", "notifications", "*.json"))
	if err != nil || len(files) == 0 {
		f.Fatal("no notifications", err)
	}
	for _, file := range files {
		f.Add(recorded(f, strings.TrimSuffix(filepath.Base(file), ".json")), "")
	}
	f.Add(recorded(f, "harbor-push"), "registry.lan:5000")
	f.Fuzz(func(t *testing.T, b []byte, host string) {
		_, events, err := Decode(b, host)
		if err != nil && len(events) > 1 {
			t.Fatalf("error %v and events", err)
		}
		if len(events) > maxEvents {
			t.Fatalf("%d events", len(events))
		}
		for _, e := range events {
			if err != nil || e.Reason != "" {
				continue
			}
			ref, err := oci.ParseReference(e.Image.String())
			if err != nil || ref != e.Image || ref.IsLayout() || oci.CheckDigest(ref.Digest) != nil {
				t.Fatalf("event of %q, which parses to %+v, %v", e.Image, ref, err)
			}
			if host != "" && e.Image.Registry != host {
				t.Fatalf("host %q became %q", host, e.Image.Registry)
			}
		}
	})
}

// FuzzQueue: a queue's file is read, or an error; what was read can be written.
func FuzzQueue(f *testing.F) {
	f.Add([]byte(`{"version":1,"images":[{"image":"example.com/a:1@sha256:fea8895f450959fa676bcc1df0611ea93823a735a01205fd8622846041d0c7cf","attempts":2}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := decodeQueue(b)
		if err != nil {
			return
		}
		for _, it := range items {
			if it.image.Digest == "" || it.image.Registry == "" || it.attempts < 0 || it.done == nil {
				t.Fatalf("item %+v", it)
			}
		}
	})
}
