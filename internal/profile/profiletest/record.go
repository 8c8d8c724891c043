// Package profiletest makes records of starts that look like real ones, for tests and
// demonstrations of what shows records. The same seed gives the same record. Nothing
// in it was measured.
package profiletest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

// Images that there are records of.
const (
	Nginx    = "nginx"     // small, quickly there, a parent with workers
	Node     = "node"      // an express application: many small files
	PythonML = "python-ml" // Flask, pandas and scikit-learn, and a route that imports lazily
)

// Modes of their starts.
const (
	Lazy  = "lazy"
	Eager = "eager"
)

// runs of each subject.
const runs = 15

// Record returns a measurement of all three images, lazily.
func Record(seed uint64) *profile.Record {
	r := record(seed, "nginx, node and python-ml")
	for _, image := range []string{Nginx, Node, PythonML} {
		r.Subjects = append(r.Subjects, Subject(seed, image, Lazy, runs))
	}
	return r
}

// Modes returns a measurement of one image, lazily and eagerly.
func Modes(seed uint64, image string) *profile.Record {
	r := record(seed, image+", lazily and eagerly")
	for _, mode := range []string{Lazy, Eager} {
		s := Subject(seed, image, mode, runs)
		s.Name += " " + mode
		r.Subjects = append(r.Subjects, s)
	}
	return r
}

func record(seed uint64, name string) *profile.Record {
	begun := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC).Add(time.Duration(seed%100_000) * time.Minute)
	return &profile.Record{Version: profile.Version, ID: fmt.Sprintf("%s-%04x", begun.Format("20060102-150405"), uint16(seed*40503+1)), Name: name,
		Source: profile.SourceMeasure, Begun: begun, Ended: begun.Add(4 * time.Minute), Tool: "1.0.0",
		Labels:  map[string]string{"service": "shop", "release": fmt.Sprintf("1.%d", seed%100)},
		Machine: profile.Machine{Kernel: "6.18.0", CPUs: 2, MemoryBytes: 8 << 30},
		Network: profile.Network{Name: "cloud", LatencyMs: 20, Bandwidth: 250_000_000},
		Signals: []profile.Signal{{Name: profile.SignalReads, Used: true}, {Name: profile.SignalTimeline, Used: true}, {Name: profile.SignalOpens, Used: true},
			{Name: profile.SignalTracefs, Used: true}, {Name: profile.SignalProbe, Used: true}, {Name: profile.SignalCachestat, Used: true},
			{Name: profile.SignalProc, Reason: "tracefs says it better"}}}
}

// pack is a package of an image: files in a layer, and when they are read.
type pack struct {
	name  string // empty: files of no package
	dir   string
	layer int
	files int
	bytes int64   // of all of them
	used  float64 // share of the files that starts read
	phase string  // in which that is; empty: never
	ms    float64 // that reading and running them takes
}

// shape is how an image starts.
type shape struct {
	command   []string
	probe     string
	layers    []profile.Layer
	packs     []pack
	processes []string // commands, after the first
	// Milliseconds of phases when all of it is here.
	queue, init, dependency, bootstrap, health float64
	routes                                     []profile.Route // FirstMs and SteadyMs
}

var shapes = map[string]shape{
	Nginx: {
		command: []string{"nginx", "-g", "daemon off;"}, probe: "http://127.0.0.1:8080/", processes: []string{"nginx: worker process", "nginx: worker process"},
		layers: []profile.Layer{{Bytes: 29 << 20, UnpackedBytes: 78 << 20, Instruction: "debian:bookworm-slim"},
			{Bytes: 42 << 20, UnpackedBytes: 110 << 20, Instruction: "RUN apt-get install -y nginx"}, {Bytes: 1200, UnpackedBytes: 4096, Instruction: "COPY nginx.conf /etc/nginx/"}},
		packs: []pack{
			{"", "/usr/lib/x86_64-linux-gnu", 0, 60, 31 << 20, 0.1, profile.PhaseDependencyLoad, 4},
			{"", "/usr/share", 0, 90, 40 << 20, 0, "", 0},
			{"lib:libssl.so.3", "/usr/lib/x86_64-linux-gnu/ssl", 1, 2, 5 << 20, 1, profile.PhaseDependencyLoad, 3},
			{"lib:libpcre2-8.so.0", "/usr/lib/x86_64-linux-gnu/pcre2", 1, 1, 640 << 10, 1, profile.PhaseDependencyLoad, 1},
			{"", "/usr/lib/nginx/modules", 1, 14, 3 << 20, 0, "", 0},
			{"", "/usr/share/nginx/html", 1, 3, 12 << 10, 0.7, profile.PhaseFirstRequest, 1},
			{"", "/etc/nginx", 2, 5, 9 << 10, 1, profile.PhaseBootstrap, 2}},
		queue: 2, init: 19, dependency: 8, bootstrap: 7, health: 3,
		routes: []profile.Route{{Route: "GET /", FirstMs: 1.4, SteadyMs: 0.35}},
	},
	Node: {
		command: []string{"node", "server.js"}, probe: "http://127.0.0.1:3000/health",
		layers: []profile.Layer{{Bytes: 29 << 20, UnpackedBytes: 78 << 20, Instruction: "debian:bookworm-slim"},
			{Bytes: 48 << 20, UnpackedBytes: 121 << 20, Instruction: "RUN install node 22"}, {Bytes: 11 << 20, UnpackedBytes: 46 << 20, Instruction: "COPY node_modules ./node_modules"},
			{Bytes: 4 << 10, UnpackedBytes: 16 << 10, Instruction: "COPY server.js ./"}},
		packs: []pack{
			{"", "/usr/lib/x86_64-linux-gnu", 0, 60, 31 << 20, 0.12, profile.PhaseDependencyLoad, 6},
			{"", "/usr/share", 0, 90, 40 << 20, 0, "", 0},
			{"", "/usr/local/bin", 1, 1, 118 << 20, 1, profile.PhaseDependencyLoad, 38},
			{"", "/usr/local/include/node", 1, 60, 3 << 20, 0, "", 0},
			{"node:express", "/app/node_modules/express", 2, 12, 214 << 10, 0.8, profile.PhaseDependencyLoad, 21},
			{"node:body-parser", "/app/node_modules/body-parser", 2, 9, 60 << 10, 0.9, profile.PhaseDependencyLoad, 9},
			{"node:iconv-lite", "/app/node_modules/iconv-lite", 2, 24, 330 << 10, 0.6, profile.PhaseDependencyLoad, 12},
			{"node:lodash", "/app/node_modules/lodash", 2, 80, 1400 << 10, 0.05, profile.PhaseDependencyLoad, 11},
			{"node:pg", "/app/node_modules/pg", 2, 22, 180 << 10, 0.7, profile.PhaseBootstrap, 14},
			{"node:typescript", "/app/node_modules/typescript", 2, 40, 32 << 20, 0, "", 0},
			{"node:pdfkit", "/app/node_modules/pdfkit", 2, 30, 2 << 20, 0.5, profile.PhaseFirstRequest, 31},
			{"", "/app", 3, 3, 14 << 10, 1, profile.PhaseBootstrap, 3}},
		queue: 2, init: 21, dependency: 104, bootstrap: 62, health: 6,
		routes: []profile.Route{{Route: "GET /", FirstMs: 9.5, SteadyMs: 0.8}, {Route: "GET /invoice.pdf", FirstMs: 58, SteadyMs: 11}},
	},
	PythonML: {
		command: []string{"gunicorn", "-b", ":8000", "app:app"}, probe: "http://127.0.0.1:8000/health/ready", processes: []string{"gunicorn: worker [app:app]", "gunicorn: worker [app:app]"},
		layers: []profile.Layer{{Bytes: 29 << 20, UnpackedBytes: 78 << 20, Instruction: "debian:bookworm-slim"},
			{Bytes: 19 << 20, UnpackedBytes: 55 << 20, Instruction: "RUN install python 3.12"}, {Bytes: 168 << 20, UnpackedBytes: 512 << 20, Instruction: "RUN pip install -r requirements.txt"},
			{Bytes: 22 << 20, UnpackedBytes: 24 << 20, Instruction: "COPY model.joblib /app/"}, {Bytes: 3 << 10, UnpackedBytes: 12 << 10, Instruction: "COPY app.py /app/"}},
		packs: []pack{
			{"", "/usr/lib/x86_64-linux-gnu", 0, 60, 31 << 20, 0.15, profile.PhaseDependencyLoad, 14},
			{"", "/usr/share", 0, 90, 40 << 20, 0, "", 0},
			{"python:stdlib", "/usr/local/lib/python3.12", 1, 160, 38 << 20, 0.5, profile.PhaseDependencyLoad, 130},
			{"python:flask", "/usr/local/lib/python3.12/site-packages/flask", 2, 20, 420 << 10, 0.8, profile.PhaseDependencyLoad, 60},
			{"python:werkzeug", "/usr/local/lib/python3.12/site-packages/werkzeug", 2, 30, 900 << 10, 0.7, profile.PhaseDependencyLoad, 48},
			{"python:numpy", "/usr/local/lib/python3.12/site-packages/numpy", 2, 110, 71 << 20, 0.45, profile.PhaseDependencyLoad, 150},
			{"python:pandas", "/usr/local/lib/python3.12/site-packages/pandas", 2, 160, 73 << 20, 0.6, profile.PhaseDependencyLoad, 410},
			{"python:scipy", "/usr/local/lib/python3.12/site-packages/scipy", 2, 180, 118 << 20, 0.35, profile.PhaseDependencyLoad, 290},
			{"python:sklearn", "/usr/local/lib/python3.12/site-packages/sklearn", 2, 140, 46 << 20, 0.5, profile.PhaseDependencyLoad, 350},
			{"python:tests", "/usr/local/lib/python3.12/site-packages/pandas/tests", 2, 120, 19 << 20, 0, "", 0},
			{"python:matplotlib", "/usr/local/lib/python3.12/site-packages/matplotlib", 2, 90, 34 << 20, 0.4, profile.PhaseFirstRequest, 620},
			{"", "/app", 4, 2, 11 << 10, 1, profile.PhaseDependencyLoad, 4},
			{"", "/app/model", 3, 1, 24 << 20, 1, profile.PhaseBootstrap, 150}},
		queue: 2, init: 24, dependency: 1460, bootstrap: 340, health: 12,
		routes: []profile.Route{{Route: "GET /", FirstMs: 14, SteadyMs: 1.9}, {Route: "POST /predict", FirstMs: 46, SteadyMs: 7.5}, {Route: "GET /plot.png", FirstMs: 880, SteadyMs: 92}},
	},
}

// Subject returns n starts of one of the images.
func Subject(seed uint64, image, mode string, n int) profile.Subject {
	sh := shapes[image]
	rnd := rand.New(rand.NewPCG(seed, uint64(len(image)*31+len(mode))))
	s := profile.Subject{Name: image, Image: "registry.example.com/" + image + ":1.2", Manifest: digest(rnd), Mode: mode, Cold: profile.ColdL0, Command: sh.command, Probe: sh.probe,
		Layers: slices.Clone(sh.layers)}
	for i := range s.Layers {
		s.Layers[i].Digest = digest(rnd)
		s.ImageBytes += s.Layers[i].Bytes
		s.UnpackedBytes += s.Layers[i].UnpackedBytes
	}
	st := starter{shape: sh, subject: &s, rnd: rnd, eager: mode == Eager}
	st.files()
	begun := time.Date(2026, 3, 2, 9, 30, 0, 0, time.UTC).Add(time.Duration(seed%100_000) * time.Minute)
	for i := range n {
		slow := math.Exp(rnd.NormFloat64() * 0.04)
		if image == PythonML && i == 11 {
			slow = 1.6 // one that was disturbed
		}
		s.Runs = append(s.Runs, st.run(begun.Add(time.Duration(i)*12*time.Second), slow))
	}
	slices.SortFunc(s.Files, func(a, b profile.File) int {
		if a.Path < b.Path {
			return -1
		}
		return 1
	})
	return s
}

func digest(rnd *rand.Rand) string {
	return fmt.Sprintf("sha256:%016x%016x%016x%016x", rnd.Uint64(), rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
}

// ms rounds to microseconds.
func ms(f float64) float64 { return math.Round(f*1000) / 1000 }

func pointer[T any](v T) *T { return &v }
