package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/policy"
)

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Check an operator's file and its policies, without starting",
		Long: `check reads the operator's file and the policies that it names, and says all that
is wrong with them: where, and how to mend it. Warnings are printed and do not fail.
If what policies may name is wrong, such as a trust domain, it does not go on to the
policies, and says so.`,
		Example: `  broker check /etc/broker/broker.yaml`,
		Args:    exactly(1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := readConfig(args[0])
			if err != nil {
				return err
			}
			engine, s, err := a.checkAll(d)
			if err != nil {
				return err
			}
			for _, w := range engine.Warnings() {
				fmt.Fprintf(a.err, "warning: %s\n", w)
			}
			found := struct {
				Policies     int      `json:"policies"`
				Entitlements int      `json:"entitlements"`
				Revision     string   `json:"revision"`
				Warnings     []string `json:"warnings,omitempty"`
			}{engine.Len(), len(s.catalogue), engine.Revision().String(), engine.Warnings()}
			return a.print(found, func(w io.Writer) {
				fmt.Fprintf(w, "%s is good: %d policies, %s, revision %.12s\n", args[0], found.Policies, counted(found.Entitlements, "entitlement"), found.Revision)
			})
		},
	}
}

// checkAll checks the file and, if what they may name holds, the policies too.
func (a *app) checkAll(d *document) (*policy.Engine, *settings, error) {
	c := d.check(a.getenv)
	if !c.namesHold() {
		return nil, nil, errors.Join(append(c.errs, errors.New("mend this first: the policies were not looked at"))...)
	}
	engine, err := c.s.engine()
	return engine, &c.s, errors.Join(append(c.errs, err)...)
}

// A checker works out the settings and collects what is wrong.
type checker struct {
	d    *document
	dir  string // relative paths are relative to the file
	env  func(string) string
	s    settings
	errs []error

	wrong []string // the keys that errs are about
}

// understand works out what the file means. Its error joins everything that is
// wrong, each with its place.
func (d *document) understand(getenv func(string) string) (*settings, error) {
	c := d.check(getenv)
	if len(c.errs) > 0 {
		return nil, errors.Join(c.errs...)
	}
	return &c.s, nil
}

// check works out what can be known of what the file means, and all that is wrong
// with it.
func (d *document) check(getenv func(string) string) *checker {
	c := &checker{d: d, dir: filepath.Dir(d.path), env: getenv, errs: slices.Clip(d.errs)}
	c.s.path = d.path
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
