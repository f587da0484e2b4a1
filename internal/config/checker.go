package config

import (
	"errors"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// A checker turns a document into a Config and collects the mistakes.
type checker struct {
	d    *document
	dir  string // of the file; relative paths start there
	env  func(string) string
	cfg  Config
	errs []error

	wrong     []string          // the keys of errs
	addresses map[string]string // of listeners, with their keys
}

// config returns the settings, or all mistakes.
func (d *document) config(getenv func(string) string) (*Config, error) {
	c := d.check(getenv)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return &c.cfg, nil
}

// check checks every section of the file.
func (d *document) check(getenv func(string) string) *checker {
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	c := &checker{d: d, dir: filepath.Dir(d.path), env: getenv, errs: slices.Clip(d.errs), addresses: map[string]string{}}
	c.cfg.Path, c.cfg.document = d.path, d
	if slices.Contains(d.rejected, "") {
		return c
	}
	c.server()
	c.replicas()
	c.listeners()
	c.sealKeys()
	c.attest()
	c.storage()
	c.issuers()
	c.entitlements()
	c.notify()
	c.tickets()
	c.signals()
	c.scim()
	c.delegation()
	c.oauth()
	c.retention()
	return c
}

// report notes a mistake at a key, unless it may only be the consequence of a
// rejected key. The text states the mistake or the correction.
func (c *checker) report(key, format string, args ...any) {
	if c.d.impliedByRejection(key) {
		return
	}
	c.errs = append(c.errs, c.d.errorf(key, format, args...))
	c.wrong = append(c.wrong, key)
}

// warn notes a likely mistake at a key, which does not keep the file from loading.
func (c *checker) warn(key, format string, args ...any) {
	c.cfg.Warnings = append(c.cfg.Warnings, c.d.errorf(key, format, args...).Error())
}

// policyInputsAreValid reports whether every name that policies may use is right in the
// file. Otherwise, checking the policies would report mistakes that they do not have.
func (c *checker) policyInputsAreValid() bool {
	for _, key := range slices.Concat(c.d.rejected, c.wrong) {
		parts := strings.Split(key, "/")
		switch {
		case slices.Contains([]string{"", "attest", "notify", "people", "policies", "tickets"}, parts[0]):
			return false
		case parts[0] != "entitlements":
		case len(parts) < 3 || parts[2] == "owner" || parts[2] == "system" || fieldsOf(reflect.TypeFor[entitlementFile]())[parts[2]] == nil:
			return false
		}
	}
	return true
}

// path joins a relative path with the file's folder.
func (c *checker) path(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.dir, path)
}

// nameForm is the form of the names of issuers, entitlements, parameters and channels.
var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func (c *checker) name(key, name string) {
	if !nameForm.MatchString(name) {
		c.report(key, "%q is not a valid name: use at most 63 lower-case letters, digits, dots, dashes and underscores", name)
	}
}

// longestText bounds a description in bytes, because lists show it next to the name.
const longestText = 300

// text checks a description, which pages and terminals show to people.
func (c *checker) text(key, text string) string {
	text = strings.TrimSpace(text)
	if len(text) > longestText || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		c.report(key, "must be one line of at most %d bytes, without control characters", longestText)
	}
	return text
}
