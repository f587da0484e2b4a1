package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A text is what the file has: YAML's numbers, truth values and bases do not change it.
func TestTextsAreReadAsWritten(t *testing.T) {
	for _, value := range []string{"012345670123", "0777", "0x1F", "1_000", "1.10", "1e3", "true", "yes", ".inf", "2026-01-01"} {
		text := strings.Replace(goodConfig, "role_arn: arn", "external_id: "+value+", role_arn: arn", 1)
		text = strings.Replace(text, "max_ttl: 30m}", "max_ttl: 30m, description: "+value+", system: s"+value+", labels: {v: "+value+", "+value+": v}}", 1)
		d, err := parseDocument("broker.yaml", []byte("\ufeff"+text))
		if err != nil || len(d.errs) > 0 {
			t.Errorf("%s: %v %v", value, err, d.errs)
			continue
		}
		e := d.file.Entitlements["orders-db-ro"]
		if got := d.file.Entitlements["reports"].AWS.ExternalID; got != value {
			t.Errorf("external_id: got %q, want %q", got, value)
		}
		if e.Description != value || e.System != "s"+value || e.Labels["v"] != value || e.Labels[value] != "v" {
			t.Errorf("%s: got %+v", value, e)
		}
	}
}

// A merge key and an alias stand for what their anchor has; explicit keys win.
func TestMergeKeysOverride(t *testing.T) {
	text := strings.NewReplacer(
		"  orders-db-ro: {issuer: vault, vault: {path: database/creds/orders-ro}, max_ttl: 30m}\n",
		"  orders-db-ro: &db {issuer: vault, vault: {path: database/creds/orders-ro}, max_ttl: 30m}\n  orders-db-rw: {<<: *db, vault: {path: database/creds/orders-rw}}\n",
	).Replace(goodConfig)
	c, err := understand(sealedDir(t), text)
	if err != nil {
		t.Fatal(err)
	}
	ro, rw := c.Catalogue["orders-db-ro"], c.Catalogue["orders-db-rw"]
	if ro == nil || rw == nil || rw.MaxTTL != ro.MaxTTL || rw.Effect == ro.Effect || rw.Issuer != "vault" {
		t.Errorf("got %+v and %+v", ro, rw)
	}
}

// Each value without the form of its field is one mistake, with its position.
func TestValuesThatDoNotFitTheirFields(t *testing.T) {
	for change, want := range map[[2]string]string{
		{"default_ttl: 10m", "default_ttl: 10m\n    owner: null"}:                  `broker.yaml:26:12: entitlements.tickets-api.owner: null is null in YAML and no text: quote it, or remove the key`,
		{"default_ttl: 10m", "default_ttl: 10m\n    owner:"}:                       `entitlements.tickets-api.owner: the key has no value`,
		{"retired: true", `retired: "true"`}:                                       `broker.yaml:19:60: issuers.old.retired: "true": write true or false, without quotes`,
		{"retired: true", "retired: yes"}:                                          `issuers.old.retired: "yes": write true or false`,
		{"required: true", "required: true, max_length: 0100"}:                     `entitlements.reports.parameters.prefix.max_length: "0100": write a whole number in decimal digits`,
		{"required: true", `required: true, max_length: "100"`}:                    `entitlements.reports.parameters.prefix.max_length: "100": write a whole number`,
		{"  metrics:", "  admission: {per_second: .inf}\n  metrics:"}:              `server.admission.per_second: ".inf": write a number such as 20 or 0.5`,
		{"token_role: leases", "token_role: !!binary bGVhc2Vz"}:                    `the tag !!binary is not supported: remove it`,
		{"[tickets:read, tickets:close]", "{tickets:read: {}, tickets:close: {}}"}: `quote the name with a colon: "tickets:read"`,
	} {
		text := strings.Replace(goodConfig, change[0], change[1], 1)
		if text == goodConfig {
			t.Fatalf("the file does not have %q", change[0])
		}
		d, err := parseDocument("broker.yaml", []byte(text))
		if err == nil && len(d.errs) == 1 {
			err = d.errs[0]
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", change[1], err, want)
		}
	}
}

// Mistakes that only the policies reveal have positions in the operator's file.
func TestPolicyMistakesInTheFileHavePositions(t *testing.T) {
	dir := sealedDir(t)
	text := strings.Replace(goodConfig, "default_ttl: 10m", "default_ttl: 10m\n    owner: suport", 1)
	for _, step := range []struct {
		prepare func() error
		want    string
	}{
		{func() error { return nil }, "broker.yaml:14:1: policies: the folder " + dir + "/policies does not exist: create it or correct the path"},
		{func() error { return os.WriteFile(filepath.Join(dir, "policies"), nil, 0o600) }, "broker.yaml:14:1: policies: " + dir + "/policies is not a folder"},
		{func() error {
			return errors.Join(os.Remove(filepath.Join(dir, "policies")), os.Mkdir(filepath.Join(dir, "policies"), 0o700))
		},
			`broker.yaml:26:5: entitlements.tickets-api.owner: group "suport" does not exist: declare it in groups.yaml or correct the name`},
	} {
		if err := step.prepare(); err != nil {
			t.Fatal(err)
		}
		c, err := understand(dir, text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Engine(); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("got %v, want %s", err, step.want)
		}
	}
}
