package watch

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/thaw-project/thaw/internal/oci"
)

// Formats of notifications, as the label of metrics has them.
const (
	FormatDistribution = "distribution"
	FormatECR          = "ecr"
	FormatHarbor       = "harbor"
	FormatUnknown      = "unknown"
)

// maxEvents bounds the events of one notification.
const maxEvents = 1000

// Event is one thing that a registry says has happened.
type Event struct {
	// Image is the manifest that was pushed, HOST/REPOSITORY[:TAG]@DIGEST; zero
	// where Reason is set and it could not be read.
	Image oci.Reference
	// Reason is why the event is nothing to act upon: ReasonNotPush,
	// ReasonNotImage or ReasonMalformed. Empty: it is to be looked at.
	Reason Reason
	Detail string // of Reason, for people
	// ArtifactType is what the registry says of the manifest, if it does.
	ArtifactType string
}

// Decode reads a notification of any known format. An error says that it is none
// of them; a single event that makes no sense is one with ReasonMalformed. A
// non-empty host is put in the place of the registries' own.
func Decode(b []byte, host string) (format string, events []Event, err error) {
	var doc struct {
		Events     []json.RawMessage `json:"events"`      // distribution
		DetailType string            `json:"detail-type"` // EventBridge
		EventData  json.RawMessage   `json:"event_data"`  // Harbor
		Spec       string            `json:"specversion"` // CloudEvents, which Harbor can send too
		Type       string            `json:"type"`
		Data       json.RawMessage   `json:"data"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return FormatUnknown, nil, fmt.Errorf("decode notification: %w", err)
	}
	switch {
	case doc.DetailType != "":
		e, err := decodeECR(b, host)
		return FormatECR, []Event{e}, err
	case doc.EventData != nil:
		events, err = decodeHarbor(doc.Type, doc.EventData, host)
		return FormatHarbor, events, err
	case doc.Spec != "" && strings.HasPrefix(doc.Type, "harbor."):
		events, err = decodeHarbor(doc.Type, doc.Data, host)
		return FormatHarbor, events, err
	case doc.Events != nil:
		events, err = decodeDistribution(doc.Events, host)
		return FormatDistribution, events, err
	}
	return FormatUnknown, nil, errors.New("decode notification: neither distribution's envelope, nor an EventBridge event, nor Harbor's webhook")
}

// distributionEvent is one of the envelope's.
// https://distribution.github.io/distribution/about/notifications/
type distributionEvent struct {
	Action string `json:"action"`
	Target struct {
		MediaType  string        `json:"mediaType"`
		Digest     digest.Digest `json:"digest"`
		Repository string        `json:"repository"`
		URL        string        `json:"url"`
		Tag        string        `json:"tag"`
	} `json:"target"`
	Request struct {
		Host string `json:"host"`
	} `json:"request"`
}

func decodeDistribution(raw []json.RawMessage, host string) ([]Event, error) {
	if len(raw) > maxEvents {
		return nil, fmt.Errorf("decode notification: %d events, more than %d", len(raw), maxEvents)
	}
	events := make([]Event, 0, len(raw))
	for _, b := range raw {
		var e distributionEvent
		if err := json.Unmarshal(b, &e); err != nil {
			events = append(events, malformed(err))
			continue
		}
		if e.Action != "push" {
			events = append(events, Event{Reason: ReasonNotPush, Detail: "action " + quote(e.Action)})
			continue
		}
		registry := host
		if u, err := url.Parse(e.Target.URL); registry == "" && err == nil {
			registry = u.Host
		}
		if registry == "" {
			registry = e.Request.Host
		}
		events = append(events, pushed(registry, e.Target.Repository, e.Target.Tag, e.Target.Digest, e.Target.MediaType))
	}
	return events, nil
}

// decodeECR reads EventBridge's event of an ECR push.
// https://docs.aws.amazon.com/AmazonECR/latest/userguide/ecr-eventbridge.html
func decodeECR(b []byte, host string) (Event, error) {
	var e struct {
		DetailType string `json:"detail-type"`
		Source     string `json:"source"`
		Account    string `json:"account"`
		Region     string `json:"region"`
		Detail     struct {
			Result       string        `json:"result"`
			Repository   string        `json:"repository-name"`
			Digest       digest.Digest `json:"image-digest"`
			Action       string        `json:"action-type"`
			Tag          string        `json:"image-tag"`
			MediaType    string        `json:"manifest-media-type"`
			ArtifactType string        `json:"artifact-media-type"`
		} `json:"detail"`
	}
	if err := json.Unmarshal(b, &e); err != nil {
		return Event{}, fmt.Errorf("decode EventBridge event: %w", err)
	}
	if e.Source != "aws.ecr" || e.DetailType != "ECR Image Action" || e.Detail.Action != "PUSH" || e.Detail.Result != "SUCCESS" {
		return Event{Reason: ReasonNotPush, Detail: fmt.Sprintf("%s of %s, action %s, result %s",
			quote(e.DetailType), quote(e.Source), quote(e.Detail.Action), quote(e.Detail.Result))}, nil
	}
	if host == "" {
		if !plain(e.Account) || !plain(e.Region) {
			return malformed(fmt.Errorf("account %s, region %s", quote(e.Account), quote(e.Region))), nil
		}
		host = e.Account + ".dkr.ecr." + e.Region + ".amazonaws.com"
		if strings.HasPrefix(e.Region, "cn-") {
			host += ".cn"
		}
	}
	ev := pushed(host, e.Detail.Repository, e.Detail.Tag, e.Detail.Digest, e.Detail.MediaType)
	ev.ArtifactType = e.Detail.ArtifactType
	return ev, nil
}

// plain reports whether s is letters, digits and dashes: it becomes part of a
// host's name.
func plain(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// decodeHarbor reads the data of Harbor's webhook, which are the same in its own
// format and as CloudEvents.
// https://goharbor.io/docs/main/working-with-projects/project-configuration/configure-webhooks/
func decodeHarbor(kind string, data json.RawMessage, host string) ([]Event, error) {
	switch kind {
	case "PUSH_ARTIFACT", "harbor.artifact.pushed", "pushImage": // the last is of Harbor 1.x
	default:
		return []Event{{Reason: ReasonNotPush, Detail: "type " + quote(kind)}}, nil
	}
	var e struct {
		Resources []struct {
			Digest digest.Digest `json:"digest"`
			Tag    string        `json:"tag"`
			URL    string        `json:"resource_url"`
		} `json:"resources"`
		Repository struct {
			FullName string `json:"repo_full_name"`
		} `json:"repository"`
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("decode Harbor's event: %w", err)
	}
	if len(e.Resources) > maxEvents {
		return nil, fmt.Errorf("decode Harbor's event: %d resources, more than %d", len(e.Resources), maxEvents)
	}
	events := make([]Event, 0, len(e.Resources))
	for _, r := range e.Resources {
		registry := host
		if registry == "" {
			registry, _, _ = strings.Cut(r.URL, "/")
		}
		if strings.HasPrefix(r.Tag, "sha256:") { // what is pushed without a tag
			r.Tag = ""
		}
		events = append(events, pushed(registry, e.Repository.FullName, r.Tag, r.Digest, ""))
	}
	return events, nil
}

// pushed is the event of a manifest, or of a blob, which registries tell of too.
func pushed(host, repository, tag string, dgst digest.Digest, mediaType string) Event {
	if host == "" || repository == "" || dgst == "" {
		return malformed(fmt.Errorf("registry %s, repository %s, digest %s", quote(host), quote(repository), quote(dgst.String())))
	}
	if err := oci.CheckDigest(dgst); err != nil {
		return malformed(err)
	}
	ref, err := oci.ParseReference(host + "/" + repository + "@" + dgst.String())
	if err != nil {
		return malformed(err)
	}
	if ref.IsLayout() || ref.Registry != host || ref.Repository != repository || ref.Digest != dgst {
		return malformed(fmt.Errorf("registry %s, repository %s", quote(host), quote(repository)))
	}
	if oci.ValidTag(tag) {
		ref.Tag = tag
	}
	if mediaType != "" && !oci.IsImageManifest(mediaType) && !oci.IsImageIndex(mediaType) {
		return Event{Image: ref, Reason: ReasonNotImage, Detail: "media type " + quote(mediaType)}
	}
	return Event{Image: ref}
}

func malformed(err error) Event { return Event{Reason: ReasonMalformed, Detail: err.Error()} }

// quote shows what came from outside: short, and without control characters.
func quote(s string) string { return fmt.Sprintf("%.100q", s) }
