package store

import (
	"strings"
	"testing"
)

func TestServersAreRefused(t *testing.T) {
	good := postgresServer{number: 140000, version: "14.0", encoding: "UTF8", database: "broker"}
	for says, change := range map[string]func(*postgresServer){
		"": func(*postgresServer) {},
		"PostgreSQL 13.22, and the broker needs version 14 or newer": func(s *postgresServer) { s.number, s.version = 130022, "13.22" },
		"PostgreSQL 9.6.24": func(s *postgresServer) { s.number, s.version = 90624, "9.6.24" },
		"has the encoding SQL_ASCII, and the broker needs UTF8": func(s *postgresServer) { s.encoding = "SQL_ASCII" },
		"is a standby, which is read-only":                      func(s *postgresServer) { s.standby, s.readOnly = true, true },
		"is read-only (default_transaction_read_only is on)":    func(s *postgresServer) { s.readOnly = true },
	} {
		s := good
		change(&s)
		err := s.check()
		if err == nil {
			err = s.writable()
		}
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
}
