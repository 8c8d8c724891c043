package profile

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Classes of files of an image.
const (
	classRuntime    = "runtime"    // the language's own, shared libraries, programs
	classDependency = "dependency" // packages of others
	classApp        = "app"
	classConfig     = "config"
	classData       = "data" // also what is written
)

var (
	dataDirs   = []string{"/tmp/", "/run/", "/var/", "/proc/", "/sys/", "/dev/", "/usr/share/zoneinfo/", "/usr/share/mime/"}
	dataKinds  = []string{".html", ".css", ".png", ".jpg", ".svg", ".ico", ".csv", ".parquet", ".db", ".sqlite", ".sqlite3", ".log", ".txt", ".md", ".gz", ".npy", ".pt", ".onnx", ".pdf"}
	configDirs = []string{"/etc/"}
	configs    = []string{".conf", ".ini", ".cfg", ".yaml", ".yml", ".toml", ".env", ".properties", ".pem", ".crt"}
	systemDirs = []string{"/lib/", "/lib64/", "/usr/", "/bin/", "/sbin/", "/opt/java/", "/nix/store/"}
)

// classOf says what kind of file a path is of.
func classOf(p string) string {
	under := func(dirs []string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(p, dir) })
	}
	name := PackageOf(p)
	kind, _, _ := strings.Cut(name, ":")
	switch {
	case kind == "lib" || kind == "bin" || name == pythonOwn || name == javaOwn:
		return classRuntime
	case name != "":
		return classDependency
	case under(dataDirs):
		return classData
	case under(configDirs) || slices.Contains(configs, path.Ext(p)):
		return classConfig
	case slices.Contains(dataKinds, path.Ext(p)):
		return classData
	case under(systemDirs) && !strings.HasPrefix(p, "/usr/src/"):
		return classRuntime
	}
	return classApp
}

// Packages that come with a language.
const (
	pythonOwn = "python:stdlib"
	javaOwn   = "java:jdk"
)

var (
	pythonSite   = pattern(`/(?:site|dist)-packages/([^/]+)(/.*)?$`)
	pythonCached = pattern(`^/__pycache__/([^/.]+)\.[^/]*$`)
	pythonStd    = pattern(`/lib/python[0-9.]+(?:\.zip)?(/|$)`)
	pythonInfo   = pattern(`^([A-Za-z0-9_.]+?)-[^/]*\.(?:dist|egg)-info$`)
	rubyGem      = pattern(`/gems/([^/]+)-[0-9][^/-]*(?:-[a-z0-9_]+)*/`)
	sharedLib    = pattern(`^(.+?\.so(?:\.[0-9]+)?)(?:\.[0-9]+)*$`)
	versioned    = pattern(`^(.+?)-[0-9][^/]*$`)
	programs     = pattern(`(?:^|/)s?bin/([^/]+)$`)
)

// pattern is compiled when it is first used: each start of the program would pay for it
// otherwise.
func pattern(s string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(s) })
}

// PackageOf names the library or program that a file of an image belongs to, such as
// python:pandas, node:@scope/name, lib:libssl.so.3, bin:nginx, java:spring-core,
// ruby:rack, php:symfony/http, dotnet:System.Text.Json. Empty: none that is known by
// its path, as what an application has of its own.
func PackageOf(p string) string {
	if m := pythonSite().FindStringSubmatch(p); m != nil {
		return pythonPackage(m[1], m[2])
	}
	if i := strings.LastIndex(p, "/node_modules/"); i >= 0 {
		return nodePackage(p[i+len("/node_modules/"):])
	}
	if m := rubyGem().FindStringSubmatch(p); m != nil {
		return "ruby:" + m[1]
	}
	base := path.Base(p)
	switch path.Ext(p) {
	case ".jar":
		name := strings.TrimSuffix(base, ".jar")
		if m := versioned().FindStringSubmatch(name); m != nil {
			name = m[1]
		}
		return "java:" + name
	case ".jmod", ".jsa":
		return javaOwn
	case ".dll":
		return "dotnet:" + strings.TrimSuffix(base, ".dll")
	}
	if strings.HasSuffix(p, "/lib/modules") && (strings.Contains(p, "/jdk") || strings.Contains(p, "/java") || strings.Contains(p, "/jre") || strings.Contains(p, "/jvm/")) {
		return javaOwn
	}
	if pythonStd().MatchString(p) {
		return pythonOwn
	}
	if _, rest, ok := strings.Cut(p, "/vendor/"); ok && strings.HasSuffix(p, ".php") {
		if parts := strings.SplitN(rest, "/", 3); len(parts) == 3 {
			return "php:" + parts[0] + "/" + parts[1]
		}
	}
	if m := sharedLib().FindStringSubmatch(base); m != nil {
		return "lib:" + m[1]
	}
	if m := programs().FindStringSubmatch(p); m != nil {
		return "bin:" + m[1]
	}
	return ""
}

// pythonPackage names what is in site-packages at top, with rest below it.
func pythonPackage(top, rest string) string {
	if top == "__pycache__" {
		if m := pythonCached().FindStringSubmatch("/" + top + rest); m != nil {
			return "python:" + m[1]
		}
		return ""
	}
	if m := pythonInfo().FindStringSubmatch(top); m != nil {
		return "python:" + m[1]
	}
	if rest == "" { // a module of one file: name.py, name.cpython-311-x86_64-linux-gnu.so
		top, _, _ = strings.Cut(top, ".")
	}
	top = strings.TrimSuffix(top, ".libs") // shared libraries of a wheel
	if top == "" {
		return ""
	}
	return "python:" + top
}

// nodePackage names what lies at rest below node_modules.
func nodePackage(rest string) string {
	parts := strings.SplitN(rest, "/", 3)
	if parts[0] == "" || parts[0][0] == '.' {
		return ""
	}
	if parts[0][0] == '@' && len(parts) > 2 {
		return "node:" + parts[0] + "/" + parts[1]
	}
	if len(parts) == 1 { // a file beside the packages
		return ""
	}
	return "node:" + parts[0]
}
