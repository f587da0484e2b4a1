// Package service wires a whole broker from the operator's file and runs it.
package service

import (
	"cmp"
	"runtime/debug"
)

// "make build" sets these with the linker.
var version, commit, date string

// A Build identifies the program: its version, the commit and the commit's date
// (RFC 3339), and the Go release that compiled it.
type Build struct{ Version, Commit, Date, Go string }

// ReadBuild returns the stamp of "make build". For a program that was built
// otherwise, it returns the values that Go recorded.
func ReadBuild() Build {
	b := Build{Version: version, Commit: commit, Date: date, Go: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.Version, b.Go = cmp.Or(b.Version, info.Main.Version), info.GoVersion
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = cmp.Or(b.Commit, s.Value)
			case "vcs.time":
				b.Date = cmp.Or(b.Date, s.Value)
			}
		}
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "dev"
	}
	b.Commit, b.Date = cmp.Or(b.Commit, "unknown"), cmp.Or(b.Date, "unknown")
	return b
}
