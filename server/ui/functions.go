package ui

import (
	"html/template"
	"time"
)

// functions are what templates may call.
var functions = template.FuncMap{
	"static": func(name string) string { return "/ui/static/" + hashed[name] },
	"stamp":  func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"utc":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
}
