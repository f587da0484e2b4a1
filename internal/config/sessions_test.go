package config

import (
	"strings"
	"testing"
	"time"
)

// Sessions of AWS are long enough for SDKs unless the file makes them short, and then
// the operator is warned.
func TestSessionLifetimes(t *testing.T) {
	dir := sealedDir(t)
	const hour, minute = time.Hour, time.Minute
	for name, test := range map[string]struct {
		entitlement string
		usual, most time.Duration
		warned      bool
	}{
		"AWS":                        {`{issuer: aws, aws: {role_arn: "arn:aws:iam::123456789012:role/r", full_role: true}}`, hour, hour, false},
		"AWS, long":                  {`{issuer: aws, max_ttl: 4h, aws: {role_arn: "arn:aws:iam::123456789012:role/r", full_role: true}}`, hour, 4 * hour, false},
		"AWS, half an hour":          {`{issuer: aws, max_ttl: 30m, aws: {role_arn: "arn:aws:iam::123456789012:role/r", full_role: true}}`, 30 * minute, 30 * minute, false},
		"AWS, the shortest":          {`{issuer: aws, max_ttl: 15m, aws: {role_arn: "arn:aws:iam::123456789012:role/r", full_role: true}}`, 15 * minute, 15 * minute, true},
		"AWS, default_ttl too short": {`{issuer: aws, default_ttl: 19m, aws: {role_arn: "arn:aws:iam::123456789012:role/r", full_role: true}}`, 19 * minute, hour, true},
		"AWS through Vault":          {`{issuer: vault, vault: {path: aws/sts/r}}`, hour, hour, false},
		"AWS through Vault, short":   {`{issuer: vault, default_ttl: 15m, vault: {path: aws/sts/r}}`, 15 * minute, hour, true},
		"database":                   {`{issuer: vault, vault: {path: database/creds/r}}`, 15 * minute, 15 * minute, false},
		"token":                      {`{issuer: tickets, scopes: [x]}`, 15 * minute, 15 * minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := understand(dir, goodConfig+"  added: "+test.entitlement+"\n")
			if err != nil {
				t.Fatal(err)
			}
			e := c.Catalogue["added"]
			if e.DefaultTTL != test.usual || e.MaxTTL != test.most {
				t.Errorf("default_ttl %s, max_ttl %s; want %s, %s", e.DefaultTTL, e.MaxTTL, test.usual, test.most)
			}
			if warned := len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "entitlements.added.default_ttl") && strings.Contains(c.Warnings[0], "broker.yaml:"); warned != test.warned || len(c.Warnings) > 1 {
				t.Errorf("the warnings are %q, want one: %t", c.Warnings, test.warned)
			}
		})
	}
}
