package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"accessbroker.internal/policy"
)

// Load reads an operator's file. Its error joins everything that is wrong, each
// with its place in the file.
func Load(path string, getenv func(string) string) (*Config, error) {
	d, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	return d.understand(getenv)
}

// Parse is Load for a file that was read already.
func Parse(path string, text []byte, getenv func(string) string) (*Config, error) {
	d, err := parseConfig(path, text)
	if err != nil {
		return nil, err
	}
	return d.understand(getenv)
}

// Check is Load that also loads the policies, and reports what is wrong with both.
// It skips the policies if the names that they use are wrong in the file.
func Check(path string, getenv func(string) string) (*Config, *policy.Engine, error) {
	d, err := readConfig(path)
	if err != nil {
		return nil, nil, err
	}
	return d.checkAll(getenv)
}

func (d *document) checkAll(getenv func(string) string) (*Config, *policy.Engine, error) {
	c := d.check(getenv)
	if !c.namesHold() {
		return nil, nil, errors.Join(append(c.errs, errors.New("mend this first: the policies were not looked at"))...)
	}
	engine, err := c.cfg.Engine()
	return &c.cfg, engine, errors.Join(append(c.errs, err)...)
}

// Engine loads the policies.
func (c *Config) Engine() (*policy.Engine, error) {
	info, err := os.Stat(c.Policies)
	if err != nil {
		return nil, fmt.Errorf("reading the policies: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a folder of policies", c.Policies)
	}
	engine, err := policy.Load(policy.Inputs{
		FS: os.DirFS(c.Policies), Catalogue: c.Catalogue, Labels: c.Marks,
		HomeDomain: c.TrustDomain, TrustDomains: c.TrustDomains, Providers: c.ProviderNames(), Channels: c.Channels(),
	})
	if err != nil {
		return nil, fmt.Errorf("policies in %s do not load:\n%w", c.Policies, err)
	}
	return engine, nil
}

// A checker works out the settings and collects what is wrong.
type checker struct {
	d    *document
	dir  string // relative paths are relative to the file
	env  func(string) string
	cfg  Config
	errs []error

	wrong []string // the keys that errs are about
}

// understand works out what the file means. Its error joins everything that is
// wrong, each with its place.
func (d *document) understand(getenv func(string) string) (*Config, error) {
	c := d.check(getenv)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return &c.cfg, nil
}

// check works out what can be known of what the file means, and all that is wrong
// with it.
func (d *document) check(getenv func(string) string) *checker {
	if getenv == nil {
		getenv = func(string) string { return "" }
	}
	c := &checker{d: d, dir: filepath.Dir(d.path), env: getenv, errs: slices.Clip(d.errs)}
	c.cfg.Path = d.path
	if slices.Contains(d.lost, "") {
		return c
	}
	c.server()
	c.listeners()
	c.secrets()
	c.attest()
	c.storage()
	c.issuers()
	c.entitlements()
	c.notify()
	return c
}

// bad notes what is wrong with a key, unless it only follows from what could not
// be read.
func (c *checker) bad(key, format string, args ...any) {
	if c.d.follows(key) {
		return
	}
	c.errs = append(c.errs, c.d.errorf(key, format, args...))
	c.wrong = append(c.wrong, key)
}

// namesHold says whether what policies may name is what the file means, so that
// looking at them finds mistakes of theirs.
func (c *checker) namesHold() bool {
	for _, key := range slices.Concat(c.d.lost, c.wrong) {
		parts := strings.Split(key, "/")
		switch {
		case slices.Contains([]string{"", "attest", "notify", "policies"}, parts[0]):
			return false
		case parts[0] != "entitlements":
		case len(parts) < 3 || parts[2] == "owner" || parts[2] == "system" || fieldsOf(reflect.TypeFor[entitlementFile]())[parts[2]] == nil:
			return false
		}
	}
	return true
}
