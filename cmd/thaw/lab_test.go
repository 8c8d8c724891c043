package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/thaw-project/thaw/internal/lab"
)

func TestLabNetwork(t *testing.T) {
	cases := []struct {
		args []string
		want lab.Network
	}{
		{nil, lab.Network{TTFB: 20 * time.Millisecond, ConnRate: 60e6, Rate: 250e6}},
		{[]string{"--net", "none"}, lab.Network{}},
		{[]string{"--net", "slow", "--ttfb", "1s", "--rate", "1GB/s"}, lab.Network{TTFB: time.Second, ConnRate: 10e6, Rate: 1e9}},
		{[]string{"--net", "none", "--conn-rate", "60MB", "--connect", "5ms"}, lab.Network{Connect: 5 * time.Millisecond, ConnRate: 60e6}},
	}
	for _, c := range cases {
		cmd := newLabServeCommand()
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		get := func(name string) string { return cmd.Flag(name).Value.String() }
		opts := labServeOptions{net: get("net"), connRate: get("conn-rate"), rate: get("rate")}
		opts.ttfb, _ = cmd.Flags().GetDuration("ttfb")
		opts.connect, _ = cmd.Flags().GetDuration("connect")
		got, err := opts.network(cmd.Flags().Changed)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v: %s", c.args, diff)
		}
	}
}

func TestLabServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // serves, prints, and ends
	for _, asJSON := range []bool{false, true} {
		var out bytes.Buffer
		opts := labServeOptions{listen: "127.0.0.1:0", net: "none", faults: []string{"reset=1KB,every=2"}, json: asJSON}
		if err := runLabServe(ctx, opts, lab.Network{}, &out); err != nil {
			t.Fatal(err)
		}
		if asJSON != json.Valid(out.Bytes()) || !strings.Contains(out.String(), "127.0.0.1:") || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("printed %q", &out)
		}
	}
	if err := runLabServe(ctx, labServeOptions{faults: []string{"boom"}}, lab.Network{}, &bytes.Buffer{}); err == nil {
		t.Error("unknown fault is accepted")
	}
}
