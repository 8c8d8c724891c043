// Package report makes one HTML page of measured starts: a file that needs no
// network and no program but a browser.
//
// [Write] computes all that the page says (sentences, medians, savings, a score) from
// the records, and puts it into the page as JSON; the page's script only draws it, and
// computes anew what its sliders change. What cannot be known from the records is
// said to be unknown. Records are not trusted: nothing of them is ever markup, and the
// page's policy lets no script run but its own, and nothing be fetched.
//
// The package measures nothing and keeps nothing.
package report

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"strings"
	"time"

	"github.com/thaw-project/thaw/internal/profile"
)

//go:embed page
var files embed.FS

// scripts of the page, in the order in which they are put together.
var scripts = []string{"core.js", "waterfall.js", "compare.js", "health.js", "healthview.js", "treemap.js", "sections.js", "bar.js", "main.js"}

// Options of a page.
type Options struct {
	Title   string    // default: what was measured
	Compare bool      // begin with the comparison
	Home    string    // link to where the page comes from; empty: none
	Made    time.Time // default: now
	Tool    string    // version of thaw
}

// Write writes the page of some records. Their subjects stand side by side.
func Write(w io.Writer, records []profile.Record, o Options) error {
	if o.Made.IsZero() {
		o.Made = time.Now()
	}
	v, err := newView(records, o)
	if err != nil {
		return err
	}
	b, err := json.Marshal(v) // escapes what could end a script: <, > and &
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	return page(w, parts{title: v.Title, about: v.about(), data: b, script: scripts})
}

// parts are what a page is made of.
type parts struct {
	title, about string
	data         []byte // JSON that the script finds
	script       []string
	connect      string // where the script may connect to
}

// page writes a page whose policy allows its own style and script, by their digests.
func page(w io.Writer, p parts) error {
	template, err := files.ReadFile("page/page.html")
	if err != nil {
		return err
	}
	style, err := files.ReadFile("page/page.css")
	if err != nil {
		return err
	}
	var script bytes.Buffer
	script.WriteString("(() => {\n\"use strict\";\n")
	for _, name := range p.script {
		b, err := files.ReadFile("page/" + name)
		if err != nil {
			return err
		}
		script.Write(b)
	}
	script.WriteString("})();\n")
	connect := p.connect
	if connect == "" {
		connect = "'none'"
	}
	policy := fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; img-src data:; connect-src %s; base-uri 'none'; form-action 'none'",
		digestOf(script.Bytes()), digestOf(style), connect)
	_, err = strings.NewReplacer("{{policy}}", policy, "{{title}}", html.EscapeString(p.title), "{{about}}", html.EscapeString(p.about),
		"{{style}}", string(style), "{{data}}", string(p.data), "{{script}}", script.String()).WriteString(w, string(template))
	return err
}

// digestOf is what a policy names an inline script or style by.
func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}
