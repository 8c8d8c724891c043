package ecs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"time"
)

// Time is a time as AWS writes it: RFC 3339 with any zone, or seconds since 1970 as a
// number with fractions. Nothing, null, "" and the year 1 are no time.
type Time struct{ time.Time }

// MarshalJSON writes RFC 3339, or null.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(t.UTC().Format(time.RFC3339Nano))
}

// UnmarshalJSON implements [json.Unmarshaler].
func (t *Time) UnmarshalJSON(b []byte) error {
	b = bytes.TrimSpace(b)
	*t = Time{}
	switch {
	case len(b) == 0 || bytes.Equal(b, []byte("null")):
		return nil
	case b[0] != '"':
		var s float64
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		if s <= 0 || s > 7e9 { // the year 2191: milliseconds, or nonsense
			return fmt.Errorf("time %s is not in seconds since 1970", b)
		}
		// By the microsecond: a float64 of today's seconds has no more.
		t.Time = time.UnixMicro(int64(math.Round(s * 1e6))).UTC()
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	if s == "" {
		return nil
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		if at, err = time.Parse("2006-01-02T15:04:05.999999999Z0700", s); err != nil {
			return fmt.Errorf("time %q is not RFC 3339", s)
		}
	}
	switch year := at.Year(); {
	case year <= 1: // Go's zero, as some SDKs write it
		return nil
	case year < 1970 || year > lastYear:
		return fmt.Errorf("time %q is of no start", s)
	}
	t.Time = at.UTC()
	return nil
}

// lastYear is so near that the time between any two fits a time.Duration.
const lastYear = 2200

// Task is a task as DescribeTasks and EventBridge's "ECS Task State Change" have it.
type Task struct {
	TaskARN              string       `json:"taskArn"`
	ClusterARN           string       `json:"clusterArn,omitempty"`
	TaskDefinitionARN    string       `json:"taskDefinitionArn,omitempty"`
	Group                string       `json:"group,omitempty"` // service:NAME, family:NAME, or what RunTask was told
	StartedBy            string       `json:"startedBy,omitempty"`
	LaunchType           string       `json:"launchType,omitempty"`
	CapacityProviderName string       `json:"capacityProviderName,omitempty"`
	PlatformVersion      string       `json:"platformVersion,omitempty"`
	AvailabilityZone     string       `json:"availabilityZone,omitempty"`
	LastStatus           string       `json:"lastStatus,omitempty"`
	HealthStatus         string       `json:"healthStatus,omitempty"`
	StopCode             string       `json:"stopCode,omitempty"`
	StoppedReason        string       `json:"stoppedReason,omitempty"`
	Version              int64        `json:"version,omitempty"`
	CreatedAt            Time         `json:"createdAt"`
	ConnectivityAt       Time         `json:"connectivityAt"`
	PullStartedAt        Time         `json:"pullStartedAt"`
	PullStoppedAt        Time         `json:"pullStoppedAt"`
	StartedAt            Time         `json:"startedAt"`
	StoppedAt            Time         `json:"stoppedAt"`
	Containers           []Container  `json:"containers,omitempty"`
	Attachments          []Attachment `json:"attachments,omitempty"`
}

// Container is one of a Task.
type Container struct {
	Name              string             `json:"name,omitempty"`
	Image             string             `json:"image,omitempty"`
	ImageDigest       string             `json:"imageDigest,omitempty"`
	LastStatus        string             `json:"lastStatus,omitempty"`
	HealthStatus      string             `json:"healthStatus,omitempty"`
	Reason            string             `json:"reason,omitempty"`
	ExitCode          *int32             `json:"exitCode,omitempty"`
	NetworkInterfaces []NetworkInterface `json:"networkInterfaces,omitempty"`
}

// NetworkInterface is one of a Container.
type NetworkInterface struct {
	PrivateIPv4Address string `json:"privateIpv4Address,omitempty"`
}

// Attachment is what a Task was given, such as a network interface.
type Attachment struct {
	Type    string      `json:"type,omitempty"`
	Details []KeyValues `json:"details,omitempty"`
}

// KeyValues is a detail of an Attachment.
type KeyValues struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// Tasks is the answer of DescribeTasks.
type Tasks struct {
	Tasks    []Task    `json:"tasks"`
	Failures []Failure `json:"failures,omitempty"`
}

// Failure is a task that DescribeTasks does not know.
type Failure struct {
	ARN    string `json:"arn,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// TargetHealth is the answer of DescribeTargetHealth, with when it was asked: AWS does
// not say since when a target is healthy, so who wants to know asks again and again.
type TargetHealth struct {
	Time         Time                `json:"time"`
	TargetGroup  string              `json:"targetGroupArn,omitempty"`
	Descriptions []TargetDescription `json:"TargetHealthDescriptions"`
}

// TargetDescription is one target of a TargetHealth.
type TargetDescription struct {
	Target struct {
		ID   string `json:"Id,omitempty"` // an address, or an instance
		Port int32  `json:"Port,omitempty"`
	} `json:"Target"`
	TargetHealth struct {
		State  string `json:"State,omitempty"` // initial, healthy, unhealthy, unused, draining, unavailable
		Reason string `json:"Reason,omitempty"`
	} `json:"TargetHealth"`
}

// Metadata is what a task is told of itself: ${ECS_CONTAINER_METADATA_URI_V4}/task.
type Metadata struct {
	Cluster          string
	TaskARN          string
	Family           string
	Revision         string
	ServiceName      string
	KnownStatus      string
	LaunchType       string
	AvailabilityZone string
	PullStartedAt    Time // of the first image
	PullStoppedAt    Time // of the last image
	Containers       []MetadataContainer
	ClockDrift       struct {
		ClockErrorBound            float64 // milliseconds
		ClockSynchronizationStatus string
	}
}

// MetadataContainer is one container of a Metadata.
type MetadataContainer struct {
	Name         string
	Image        string
	ImageID      string
	Type         string // NORMAL; else ECS made it
	KnownStatus  string
	ExitCode     *int32
	CreatedAt    Time
	StartedAt    Time
	FinishedAt   Time
	Snapshotter  string // overlayfs, soci
	RestartCount *int
	Health       struct {
		Status      string `json:"status"`
		StatusSince Time   `json:"statusSince"`
	}
}
