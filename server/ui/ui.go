// Package ui renders the broker's pages as HTML. It decides nothing: package
// server passes only what the viewer may see.
//
// The pages work without JavaScript, except for passkeys. html/template escapes
// every text from outside; nothing here converts one to template.HTML.
package ui

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"
)

//go:embed templates/*.html static/*
var files embed.FS

// A Page is one rendered page.
type Page struct {
	Name   string // of its template, without ".html"
	Title  string
	Base   string // the path of the external URL: links begin with it
	Viewer *Viewer
	Tab    string // the current entry of the navigation
	Data   any
}

// A Viewer is the person who is logged in.
type Viewer struct {
	ID   string // "<provider>/<sub>"
	Name string // for display; may be empty

	Waiting          int  // the decisions that wait for the viewer
	MayKill          bool // policy permits the viewer to use the kill switch
	MaySeeOverview   bool
	HasReviews       bool // the rules have access reviews
	MaySeeIdentities bool // the inventory
	Suppliers        bool // the viewer sponsors or assesses suppliers, or may see all

	NewPasskey time.Time // when the viewer's newest passkey becomes valid; zero: no passkey is waiting
}

// Label returns the name that pages show.
func (v *Viewer) Label() string {
	if v.Name != "" {
		return v.Name
	}
	return v.ID
}

// A File is a static file, under a name that changes with its content.
type File struct {
	Content   []byte
	MediaType string
}

// An assets has the embedded files as the pages use them.
type assets struct {
	statics   map[string]File   // by name with hash
	hashed    map[string]string // name to name with hash
	templates map[string]*template.Template
}

var mediaTypes = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}

// Load parses the templates, which takes 50 ms and 7 MB. Only a program that serves pages
// needs them: it calls Load at its start, so that no call waits.
func Load() { loaded() }

var loaded = sync.OnceValue(load)

func load() *assets {
	a := &assets{statics: map[string]File{}, hashed: map[string]string{}, templates: map[string]*template.Template{}}
	entries, err := fs.ReadDir(files, "static")
	must(err)
	for _, e := range entries {
		content, err := files.ReadFile("static/" + e.Name())
		must(err)
		sum := sha256.Sum256(content)
		ext := path.Ext(e.Name())
		name := strings.TrimSuffix(e.Name(), ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		a.statics[name], a.hashed[e.Name()] = File{content, mediaTypes[ext]}, name
	}
	static := func(name string) string { return "/ui/static/" + a.hashed[name] }
	base := template.Must(template.New("layout.html").Funcs(functions).Funcs(template.FuncMap{"static": static}).ParseFS(files, "templates/layout.html", "templates/part-*.html"))
	pages, err := fs.Glob(files, "templates/[a-z]*.html")
	must(err)
	for _, p := range pages {
		if name := path.Base(p); name != "layout.html" && !strings.HasPrefix(name, "part-") {
			t := template.Must(template.Must(base.Clone()).ParseFS(files, p))
			a.templates[strings.TrimSuffix(path.Base(p), ".html")] = t
		}
	}
	return a
}

// must stops a program whose embedded files are broken.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// Static returns a static file by its hashed name.
func Static(name string) (File, bool) {
	f, ok := loaded().statics[name]
	return f, ok
}

// Render returns the HTML of a page.
func Render(p Page) ([]byte, error) {
	t := loaded().templates[p.Name]
	if t == nil {
		return nil, fmt.Errorf("rendering the page %q: there is no such template", p.Name)
	}
	var b bytes.Buffer
	if err := t.ExecuteTemplate(&b, "layout.html", p); err != nil {
		return nil, fmt.Errorf("rendering the page %q: %w", p.Name, err)
	}
	return b.Bytes(), nil
}
