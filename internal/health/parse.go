package health

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Kinds of files.
const (
	KindECS        = "ecs" // a task definition
	KindTarget     = "target-group"
	KindDockerfile = "dockerfile"
	KindImage      = "image" // an image's config, or what docker inspect prints
	KindCompose    = "compose"
	KindKubernetes = "kubernetes"
)

// MaxFileBytes bounds a file that is read.
const MaxFileBytes = 8 << 20

const maxChecks = 1000 // of a file

// Check is one that a file has, or a container without one.
type Check struct {
	Kind string
	Name string // of the container, service or target group
	// One of these is set; none: there is no check.
	Container *Container
	Target    *Target
	Pod       *Pod
	// Document and Path are where the check stands, or would: the document's number
	// in the file and a JSON pointer; for a Dockerfile the number of its line, and of
	// the one after it (equal where it has none).
	Document  int
	Path      string
	Line, End int

	probes map[string]probeYAML // of a pod, as written
}

// Service is what an ECS service says about checks.
type Service struct {
	Name  string
	Grace time.Duration // healthCheckGracePeriodSeconds
}

// File is what Parse found.
type File struct {
	Checks   []Check
	Services []Service
}

// Parse reads the checks of a file: an ECS task definition or service, target
// groups, a Dockerfile, an image's config, a compose file, or objects of
// Kubernetes with pods in them. The name only tells Dockerfiles. Values that are
// not given are the defaults of whoever reads the file. That there is nothing of
// the kind in it is an error; a container without a check is not.
func Parse(name string, b []byte) (*File, error) {
	f, err := parse(name, b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return f, nil
}

// maxWait is so long that sums of a few fit a time.Duration: 31 years.
const maxWait = 1e9 * time.Second

// bounded refuses a check that would wait for longer than can be computed.
func (c *Check) bounded() error {
	long := func(n int, d time.Duration) bool { return float64(n)*float64(d) > float64(maxWait) }
	var too bool
	switch {
	case c.Container != nil:
		too = long(c.Container.Retries, c.Container.Interval+c.Container.Timeout)
	case c.Target != nil:
		too = long(c.Target.Healthy+c.Target.Unhealthy, c.Target.Interval)
	case c.Pod != nil:
		for _, p := range []*Probe{c.Pod.Startup, c.Pod.Readiness, c.Pod.Liveness} {
			too = too || p != nil && long(p.Success+p.Failure, p.Period)
		}
	}
	if too {
		return fmt.Errorf("%s: so many checks, so far apart, take longer than thirty years", c.Name)
	}
	return nil
}

var dockerfileRegexp = pattern(`(?i)^(dockerfile|containerfile)|\.(dockerfile|containerfile)$`)

func parse(name string, b []byte) (*File, error) {
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("it has more than %d bytes", MaxFileBytes)
	}
	f := &File{}
	if dockerfileRegexp().MatchString(filepath.Base(name)) {
		c, err := parseDockerfile(b)
		if err != nil {
			return nil, err
		}
		f.Checks = append(f.Checks, *c)
		return f, c.bounded()
	}
	dec := yaml.NewDecoder(bytes.NewReader(b)) // JSON is YAML
	for i := 0; ; i++ {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := f.document(i, &doc); err != nil {
			return nil, err
		}
		if len(f.Checks) > maxChecks {
			return nil, fmt.Errorf("more than %d checks", maxChecks)
		}
	}
	for i := range f.Checks {
		if err := f.Checks[i].bounded(); err != nil {
			return nil, err
		}
	}
	if len(f.Checks) == 0 && len(f.Services) == 0 {
		return nil, errors.New("no task definition, target group, image config, compose file or pod is in it (a Dockerfile is known by its name)")
	}
	return f, nil
}

// document has what tells the kinds of files apart.
type document struct {
	Task         yaml.Node   `yaml:"taskDefinition"` // of describe-task-definition; a name in a service
	Containers   []yaml.Node `yaml:"containerDefinitions"`
	TargetGroups []yaml.Node `yaml:"TargetGroups"`
	Interval     *int        `yaml:"HealthCheckIntervalSeconds"`
	Healthy      *int        `yaml:"HealthyThresholdCount"`
	Services     yaml.Node   `yaml:"services"`
	ServiceName  string      `yaml:"serviceName"`
	Grace        *int        `yaml:"healthCheckGracePeriodSeconds"`
	Config       yaml.Node   `yaml:"config"` // of an image
	Inspected    yaml.Node   `yaml:"Config"` // of docker inspect
	Kind         string      `yaml:"kind"`
	Items        []yaml.Node `yaml:"items"`
}

func (f *File) document(i int, n *yaml.Node) error {
	if n.Kind == yaml.DocumentNode && len(n.Content) == 1 {
		n = n.Content[0]
	}
	if n.Kind == yaml.SequenceNode { // docker inspect prints a list
		for j, item := range n.Content {
			if err := f.object(i, fmt.Sprintf("/%d", j), item); err != nil {
				return err
			}
		}
		return nil
	}
	return f.object(i, "", n)
}

func (f *File) object(i int, path string, n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return nil
	}
	var d document
	if err := n.Decode(&d); err != nil {
		return err
	}
	at := func(format string, args ...any) string { return path + fmt.Sprintf(format, args...) }
	switch {
	case d.Kind != "":
		return f.kubernetes(i, path, d, n)
	case d.Task.Kind == yaml.MappingNode:
		return f.object(i, path+"/taskDefinition", &d.Task)
	case d.Containers != nil:
		for j := range d.Containers {
			if err := f.ecsContainer(i, at("/containerDefinitions/%d", j), &d.Containers[j]); err != nil {
				return err
			}
		}
	case d.TargetGroups != nil:
		for j := range d.TargetGroups {
			if err := f.target(i, at("/TargetGroups/%d", j), &d.TargetGroups[j]); err != nil {
				return err
			}
		}
	case d.Interval != nil || d.Healthy != nil:
		return f.target(i, path, n)
	case d.ServiceName != "":
		s := Service{Name: d.ServiceName}
		if d.Grace != nil {
			s.Grace = time.Duration(*d.Grace) * time.Second
		}
		f.Services = append(f.Services, s)
	case d.Services.Kind == yaml.SequenceNode: // describe-services
		for _, s := range d.Services.Content {
			if err := f.object(i, path, s); err != nil {
				return err
			}
		}
	case d.Services.Kind == yaml.MappingNode:
		return f.compose(i, path, &d.Services)
	case d.Inspected.Kind == yaml.MappingNode:
		return f.image(i, path+"/Config", &d.Inspected)
	case d.Config.Kind == yaml.MappingNode:
		return f.image(i, path+"/config", &d.Config)
	}
	return nil
}

// seconds converts a whole number that a file has; nil is the default.
func seconds(what string, v *int, to *time.Duration) error {
	if v == nil {
		return nil
	}
	if *v < 0 || *v > maxSeconds {
		return fmt.Errorf("%s: %d is not a time in seconds", what, *v)
	}
	*to = time.Duration(*v) * time.Second
	return nil
}

func count(what string, v, to *int) error {
	if v == nil {
		return nil
	}
	if *v < 1 || *v > 100_000 {
		return fmt.Errorf("%s: %d is not a number of checks", what, *v)
	}
	*to = *v
	return nil
}

// ecsContainer reads a container of a task definition.
// https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_HealthCheck.html
func (f *File) ecsContainer(i int, path string, n *yaml.Node) error {
	var d struct {
		Name  string `yaml:"name"`
		Check *struct {
			Command     []string `yaml:"command"`
			Interval    *int     `yaml:"interval"`
			Timeout     *int     `yaml:"timeout"`
			Retries     *int     `yaml:"retries"`
			StartPeriod *int     `yaml:"startPeriod"`
		} `yaml:"healthCheck"`
	}
	if err := n.Decode(&d); err != nil {
		return err
	}
	check := Check{Kind: KindECS, Name: d.Name, Document: i, Path: path + "/healthCheck"}
	if h := d.Check; h != nil && len(h.Command) > 0 && h.Command[0] != "NONE" {
		c := ECSDefaults
		c.Command = h.Command
		err := errors.Join(seconds("interval", h.Interval, &c.Interval), seconds("timeout", h.Timeout, &c.Timeout),
			count("retries", h.Retries, &c.Retries), seconds("startPeriod", h.StartPeriod, &c.StartPeriod), c.positive())
		if err != nil {
			return fmt.Errorf("container %q: healthCheck: %w", d.Name, err)
		}
		check.Container = &c
	}
	f.Checks = append(f.Checks, check)
	return nil
}

// positive refuses what no engine would wait for.
func (c *Container) positive() error {
	if c.Interval <= 0 || c.Timeout <= 0 || c.StartInterval <= 0 {
		return errors.New("interval and timeout have to be more than nothing")
	}
	return nil
}

// target reads a target group, as describe-target-groups prints it and
// create-target-group takes it.
// https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_TargetGroup.html
func (f *File) target(i int, path string, n *yaml.Node) error {
	var d struct {
		Name      string `yaml:"TargetGroupName"`
		CLI       string `yaml:"Name"`
		Path      string `yaml:"HealthCheckPath"`
		Interval  *int   `yaml:"HealthCheckIntervalSeconds"`
		Timeout   *int   `yaml:"HealthCheckTimeoutSeconds"`
		Healthy   *int   `yaml:"HealthyThresholdCount"`
		Unhealthy *int   `yaml:"UnhealthyThresholdCount"`
	}
	if err := n.Decode(&d); err != nil {
		return err
	}
	t := TargetDefaults
	t.Path = d.Path
	err := errors.Join(seconds("HealthCheckIntervalSeconds", d.Interval, &t.Interval), seconds("HealthCheckTimeoutSeconds", d.Timeout, &t.Timeout),
		count("HealthyThresholdCount", d.Healthy, &t.Healthy), count("UnhealthyThresholdCount", d.Unhealthy, &t.Unhealthy))
	if err == nil && (t.Interval <= 0 || t.Timeout <= 0) {
		err = errors.New("interval and timeout have to be more than nothing")
	}
	if d.Name == "" {
		d.Name = d.CLI
	}
	if err != nil {
		return fmt.Errorf("target group %q: %w", d.Name, err)
	}
	f.Checks = append(f.Checks, Check{Kind: KindTarget, Name: d.Name, Target: &t, Document: i, Path: path})
	return nil
}

// image reads the Healthcheck of an image's config, in nanoseconds.
// https://github.com/moby/docker-image-spec/blob/main/spec.md
func (f *File) image(i int, path string, n *yaml.Node) error {
	var d struct {
		Check *struct {
			Test          []string `yaml:"Test"`
			Interval      int64    `yaml:"Interval"`
			Timeout       int64    `yaml:"Timeout"`
			StartPeriod   int64    `yaml:"StartPeriod"`
			StartInterval int64    `yaml:"StartInterval"`
			Retries       int      `yaml:"Retries"`
		} `yaml:"Healthcheck"`
	}
	if err := n.Decode(&d); err != nil {
		return err
	}
	check := Check{Kind: KindImage, Name: "image", Document: i, Path: path + "/Healthcheck"}
	if h := d.Check; h != nil && len(h.Test) > 1 && h.Test[0] != "NONE" {
		c := DockerDefaults
		c.Command = h.Test
		for _, v := range []struct {
			ns int64
			to *time.Duration
		}{{h.Interval, &c.Interval}, {h.Timeout, &c.Timeout}, {h.StartPeriod, &c.StartPeriod}, {h.StartInterval, &c.StartInterval}} {
			if v.ns < 0 || v.ns > maxSeconds*1e9 {
				return fmt.Errorf("healthcheck: %d is not a time in nanoseconds", v.ns)
			}
			if v.ns > 0 { // 0 is the default
				*v.to = time.Duration(v.ns)
			}
		}
		if h.Retries > 0 && h.Retries <= 100_000 {
			c.Retries = h.Retries
		}
		check.Container = &c
	}
	f.Checks = append(f.Checks, check)
	return nil
}

// compose reads the services of a compose file.
// https://github.com/compose-spec/compose-spec/blob/main/05-services.md#healthcheck
func (f *File) compose(i int, path string, services *yaml.Node) error {
	var d map[string]struct {
		Check *struct {
			Test          yaml.Node `yaml:"test"`
			Interval      string    `yaml:"interval"`
			Timeout       string    `yaml:"timeout"`
			StartPeriod   string    `yaml:"start_period"`
			StartInterval string    `yaml:"start_interval"`
			Retries       string    `yaml:"retries"`
			Disable       bool      `yaml:"disable"`
		} `yaml:"healthcheck"`
	}
	if err := services.Decode(&d); err != nil {
		return err
	}
	names := make([]string, 0, len(d))
	for name := range d {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		check := Check{Kind: KindCompose, Name: name, Document: i, Path: path + "/services/" + escape(name) + "/healthcheck"}
		if h := d[name].Check; h != nil && !h.Disable {
			c := DockerDefaults
			var err error
			if c.Command, err = composeTest(&h.Test); err == nil {
				err = c.set(map[string]string{"interval": h.Interval, "timeout": h.Timeout, "start_period": h.StartPeriod, "start_interval": h.StartInterval, "retries": h.Retries})
			}
			if err != nil {
				return fmt.Errorf("service %q: healthcheck: %w", name, err)
			}
			if len(c.Command) != 1 || c.Command[0] != "NONE" {
				check.Container = &c
			}
		}
		f.Checks = append(f.Checks, check)
	}
	return nil
}

// escape makes a name a part of a JSON pointer (RFC 6901).
func escape(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(s)
}

// composeTest reads a command: a list, or a string for the shell.
func composeTest(n *yaml.Node) ([]string, error) {
	if n.Kind == yaml.ScalarNode {
		return []string{"CMD-SHELL", n.Value}, nil
	}
	var list []string
	return list, n.Decode(&list)
}

// set sets what is written in Go's and compose's notation of times; an empty value
// is not given, and 0 the default.
func (c *Container) set(values map[string]string) error {
	for _, v := range []struct {
		name string
		to   *time.Duration
	}{{"interval", &c.Interval}, {"timeout", &c.Timeout}, {"start_period", &c.StartPeriod}, {"start_interval", &c.StartInterval}} {
		s := values[v.name]
		switch {
		case s == "":
			continue
		case strings.Contains(s, "$"):
			return fmt.Errorf("%s: %q has a variable; read what docker compose config prints", v.name, s)
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < 0 || d > maxSeconds*time.Second || d > 0 && d < time.Millisecond {
			return fmt.Errorf("%s: %q is not a time such as 5s", v.name, s)
		}
		if d > 0 {
			*v.to = d
		}
	}
	if s := values["retries"]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > 100_000 {
			return fmt.Errorf("retries: %q is not a number", s)
		}
		if n > 0 {
			c.Retries = n
		}
	}
	return nil
}

// probeYAML is a probe as it is written.
// https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#Probe
type probeYAML struct {
	Handler map[string]yaml.Node `yaml:",inline"` // all but these
	Delay   *int                 `yaml:"initialDelaySeconds"`
	Period  *int                 `yaml:"periodSeconds"`
	Timeout *int                 `yaml:"timeoutSeconds"`
	Success *int                 `yaml:"successThreshold"`
	Failure *int                 `yaml:"failureThreshold"`
	Grace   *int                 `yaml:"terminationGracePeriodSeconds"`
}

func (y *probeYAML) probe() (*Probe, error) {
	p := ProbeDefaults
	_, p.Exec = y.Handler["exec"]
	for _, v := range []*int{y.Period, y.Timeout, y.Success, y.Failure} { // 0 is the default
		if v != nil && *v == 0 {
			*v = -1
		}
	}
	given := func(v *int) *int {
		if v == nil || *v == -1 {
			return nil
		}
		return v
	}
	return &p, errors.Join(seconds("initialDelaySeconds", y.Delay, &p.Delay), seconds("periodSeconds", given(y.Period), &p.Period), seconds("timeoutSeconds", given(y.Timeout), &p.Timeout),
		count("successThreshold", given(y.Success), &p.Success), count("failureThreshold", given(y.Failure), &p.Failure))
}

// kubernetes reads the containers of a pod, or of what makes pods.
func (f *File) kubernetes(i int, path string, d document, n *yaml.Node) error {
	if d.Items != nil { // a List
		for j := range d.Items {
			if err := f.object(i, path+fmt.Sprintf("/items/%d", j), &d.Items[j]); err != nil {
				return err
			}
		}
		return nil
	}
	where, ok := map[string]string{"Pod": "/spec", "Deployment": "/spec/template/spec", "ReplicaSet": "/spec/template/spec", "StatefulSet": "/spec/template/spec",
		"DaemonSet": "/spec/template/spec", "ReplicationController": "/spec/template/spec", "Job": "/spec/template/spec", "CronJob": "/spec/jobTemplate/spec/template/spec"}[d.Kind]
	if !ok {
		return nil
	}
	spec := n
	for part := range strings.SplitSeq(where[1:], "/") {
		if spec = member(spec, part); spec == nil {
			return nil
		}
	}
	var object struct {
		Metadata struct {
			Name string `yaml:"name"`
		} `yaml:"metadata"`
	}
	var pod struct {
		Containers []struct {
			Name      string     `yaml:"name"`
			Startup   *probeYAML `yaml:"startupProbe"`
			Readiness *probeYAML `yaml:"readinessProbe"`
			Liveness  *probeYAML `yaml:"livenessProbe"`
		} `yaml:"containers"`
	}
	if err := errors.Join(n.Decode(&object), spec.Decode(&pod)); err != nil {
		return err
	}
	for j, c := range pod.Containers {
		check := Check{Kind: KindKubernetes, Name: strings.ToLower(d.Kind) + "/" + object.Metadata.Name + " " + c.Name, Document: i,
			Path: path + where + fmt.Sprintf("/containers/%d", j), Pod: &Pod{}, probes: map[string]probeYAML{}}
		for _, v := range []struct {
			name string
			y    *probeYAML
			to   **Probe
		}{{"startupProbe", c.Startup, &check.Pod.Startup}, {"readinessProbe", c.Readiness, &check.Pod.Readiness}, {"livenessProbe", c.Liveness, &check.Pod.Liveness}} {
			if v.y == nil {
				continue
			}
			p, err := v.y.probe()
			if err == nil && v.name != "readinessProbe" && p.Success != 1 {
				err = errors.New("successThreshold has to be 1")
			}
			if err != nil {
				return fmt.Errorf("%s: %s: %w", check.Name, v.name, err)
			}
			*v.to, check.probes[v.name] = p, *v.y
		}
		f.Checks = append(f.Checks, check)
	}
	return nil
}

// member returns a mapping's value, or nil.
func member(n *yaml.Node, name string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}
