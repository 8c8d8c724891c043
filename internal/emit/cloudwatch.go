package emit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of CloudWatch.
const (
	maxDirectiveMetrics = 100                 // EMF: metrics in one directive
	maxEventBytes       = 1 << 20             // of an event in CloudWatch Logs
	eventOverheadBytes  = 26                  // that it adds
	maxDimensionBytes   = 1024                // of a dimension's value
	maxCallData         = 1000                // PutMetricData: data in a call
	maxDatumValues      = 150                 // values in a datum
	maxCallBytes        = 1 << 20             // of a call
	oldest              = 14 * 24 * time.Hour // what is older is not taken
	newest              = 2 * time.Hour       // nor what is later than this from now
)

// Resolutions of metrics in CloudWatch, in seconds.
const (
	ResolutionStandard = 60
	ResolutionHigh     = 1
)

// metric is a number as CloudWatch takes it.
type metric struct {
	name, unit string
	value      float64
}

// metrics are the numbers of a start.
func (s *Start) metrics() []metric {
	var all []metric
	if s.DurationMs != nil {
		all = append(all, metric{MetricDuration, unitMs, *s.DurationMs})
	}
	all = append(all, metric{MetricCount, unitCount, 1})
	for _, p := range s.Phases {
		all = append(all, metric{MetricPhase(p.Name), unitMs, p.Ms})
	}
	return all
}

// dimension is a dimension's value.
func (s *Start) dimension(name string) string {
	if name == DimensionTaskDefinition {
		return s.TaskDefinition
	}
	return s.Service
}

// check says what of a start CloudWatch would refuse, or drop without a word.
func (s *Start) check() error {
	for _, set := range DimensionSets {
		for _, name := range set {
			if err := checkDimension(name, s.dimension(name)); err != nil {
				return err
			}
		}
	}
	if s.At.IsZero() {
		return fmt.Errorf("record %s does not say when run %d of %s was", s.Record, s.Run, s.Subject)
	}
	return nil
}

// checkDimension says why CloudWatch does not take a dimension's value.
// https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_Dimension.html
func checkDimension(name, value string) error {
	switch {
	case strings.TrimSpace(value) == "":
		return fmt.Errorf("%s is empty", name)
	case len(value) > maxDimensionBytes:
		return fmt.Errorf("%s %.40q... is too long for CloudWatch: %d bytes at most", name, value, maxDimensionBytes)
	case strings.HasPrefix(value, ":"), strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }):
		return fmt.Errorf("%s %q: CloudWatch wants printable ASCII that does not begin with a colon", name, value)
	}
	return nil
}

// Stale returns how many starts CloudWatch would drop, because they are older than two
// weeks or later than in two hours.
func Stale(starts []Start, now time.Time) int {
	n := 0
	for i := range starts {
		if age := now.Sub(starts[i].At); age > oldest || age < -newest {
			n++
		}
	}
	return n
}

// emfDirective and what is in it are the metadata of an event, in the words of
// https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
type emfDirective struct {
	Namespace  string      `json:"Namespace"`
	Dimensions [][]string  `json:"Dimensions"`
	Metrics    []emfMetric `json:"Metrics"`
}

type emfMetric struct {
	Name              string `json:"Name"`
	Unit              string `json:"Unit"`
	StorageResolution int    `json:"StorageResolution,omitempty"` // absent: 60
}

type emfMetadata struct {
	Timestamp         int64          `json:"Timestamp"`
	CloudWatchMetrics []emfDirective `json:"CloudWatchMetrics"`
}

// EMF returns starts as events in CloudWatch's embedded metric format, a line each. Of an
// event that is delivered twice the members record, subject and run are the same.
func EMF(starts []Start, resolution int) ([]byte, error) {
	var out bytes.Buffer
	for i := range starts {
		s := &starts[i]
		if err := s.check(); err != nil {
			return nil, err
		}
		line, err := s.emf(resolution)
		if err != nil {
			return nil, fmt.Errorf("encode run %d of %s: %w", s.Run, s.Subject, err)
		}
		if len(line)+eventOverheadBytes > maxEventBytes {
			return nil, fmt.Errorf("run %d of %s makes an event of %d bytes, CloudWatch takes %d", s.Run, s.Subject, len(line), maxEventBytes)
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

func (s *Start) emf(resolution int) ([]byte, error) {
	all := s.metrics()
	o := &object{}
	meta := emfMetadata{Timestamp: s.At.UnixMilli()}
	for part := range slices.Chunk(all, maxDirectiveMetrics) {
		d := emfDirective{Namespace: Namespace, Dimensions: DimensionSets}
		for _, m := range part {
			e := emfMetric{Name: m.name, Unit: m.unit}
			if resolution == ResolutionHigh {
				e.StorageResolution = ResolutionHigh
			}
			d.Metrics = append(d.Metrics, e)
		}
		meta.CloudWatchMetrics = append(meta.CloudWatchMetrics, d)
	}
	o.put("_aws", meta)
	o.put(DimensionService, s.Service)
	o.put(DimensionTaskDefinition, s.TaskDefinition)
	for _, m := range all {
		o.put(m.name, m.value)
	}
	for _, p := range []struct{ name, value string }{{"task", s.Task}, {"image", s.Image}, {"cold", s.Cold}, {"mode", s.Mode},
		{"revision", s.Revision}, {"record", s.Record}, {"subject", s.Subject}, {"error", s.Error}} {
		if p.value != "" {
			o.put(p.name, p.value)
		}
	}
	o.put("run", s.Run)
	if s.ColdProven != nil {
		o.put("cold_proven", *s.ColdProven)
	}
	return o.end()
}

// object writes a JSON object whose members stand in the order in which they came.
type object struct {
	b   bytes.Buffer
	err error
}

func (o *object) put(name string, value any) {
	key, err := json.Marshal(name)
	v, verr := json.Marshal(value)
	o.err = errors.Join(o.err, err, verr)
	if o.b.Len() == 0 {
		o.b.WriteByte('{')
	} else {
		o.b.WriteByte(',')
	}
	o.b.Write(key)
	o.b.WriteByte(':')
	o.b.Write(v)
}

func (o *object) end() ([]byte, error) {
	o.b.WriteByte('}')
	return o.b.Bytes(), o.err
}

// Call is what one call of PutMetricData sends.
type Call struct {
	Namespace string  `json:"namespace"`
	Data      []Datum `json:"data"`
}

// Datum is the values of one metric at one time, each as often as its count.
type Datum struct {
	Name       string      `json:"name"`
	Unit       string      `json:"unit"`
	At         time.Time   `json:"at"`
	Dimensions []Dimension `json:"dimensions"`
	Values     []float64   `json:"values"`
	Counts     []float64   `json:"counts"`
	Resolution int32       `json:"resolution"` // in seconds
}

// Dimension is a part of a metric's identity.
type Dimension struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// PutMetricData returns the calls that send starts to CloudWatch: those of the same minute
// (or second, at high resolution) together.
func PutMetricData(starts []Start, resolution int) ([]Call, error) {
	step := time.Minute
	if resolution == ResolutionHigh {
		step = time.Second
	} else {
		resolution = ResolutionStandard
	}
	type key struct {
		name, service, task string
		at                  time.Time
	}
	data := map[key]*Datum{}
	var order []key
	for i := range starts {
		s := &starts[i]
		if err := s.check(); err != nil {
			return nil, err
		}
		for _, m := range s.metrics() {
			for _, set := range DimensionSets {
				k := key{name: m.name, service: s.Service, at: s.At.UTC().Truncate(step)}
				var dims []Dimension
				for _, name := range set {
					dims = append(dims, Dimension{name, s.dimension(name)})
					if name == DimensionTaskDefinition {
						k.task = s.TaskDefinition
					}
				}
				if data[k] == nil {
					data[k] = &Datum{Name: m.name, Unit: m.unit, At: k.at, Dimensions: dims, Resolution: int32(resolution)}
					order = append(order, k)
				}
				data[k].add(m.value)
			}
		}
	}
	slices.SortStableFunc(order, func(a, b key) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.service, b.service), cmp.Compare(a.task, b.task))
	})
	var calls []Call
	bytes := 0
	for _, k := range order {
		for _, d := range data[k].split() {
			n := d.bytes()
			if len(calls) == 0 || len(calls[len(calls)-1].Data) == maxCallData || bytes+n > maxCallBytes {
				calls = append(calls, Call{Namespace: Namespace})
				bytes = 0
			}
			last := &calls[len(calls)-1]
			last.Data = append(last.Data, d)
			bytes += n
		}
	}
	return calls, nil
}

func (d *Datum) add(v float64) {
	if i := slices.Index(d.Values, v); i >= 0 {
		d.Counts[i]++
		return
	}
	d.Values = append(d.Values, v)
	d.Counts = append(d.Counts, 1)
}

// split makes data that have no more values than a datum may have.
func (d *Datum) split() []Datum {
	var all []Datum
	for from := 0; from < len(d.Values); from += maxDatumValues {
		to := min(from+maxDatumValues, len(d.Values))
		part := *d
		part.Values, part.Counts = d.Values[from:to], d.Counts[from:to]
		all = append(all, part)
	}
	return all
}

// bytes is what a datum takes of a call at most, in whichever of CloudWatch's encodings:
// the query protocol's names are the longest.
func (d *Datum) bytes() int {
	n := 512 + 128*len(d.Values)
	for _, dim := range d.Dimensions {
		n += 128 + 3*len(dim.Name+dim.Value)
	}
	return n
}
