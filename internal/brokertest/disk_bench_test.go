package brokertest

import (
	"database/sql"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	_ "modernc.org/sqlite"
)

// BenchmarkDisk reports where the bytes of an issuance are on disk: the table in
// package store's documentation.
//
//	go test ./internal/brokertest -run '^$' -bench Disk -benchtime 20000x -v
func BenchmarkDisk(b *testing.B) {
	k := newBroker(b, slog.New(slog.NewJSONHandler(io.Discard, nil)))
	asks, clients := k.asks(b, benchTokens, false), k.connect(b, false)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(k.dir, "broker.db")+"?mode=ro")
	k.must(err)
	b.Cleanup(func() { _ = db.Close() })
	number := func(query string) (n float64) {
		k.must(db.QueryRow(query).Scan(&n))
		return n / float64(b.N)
	}
	before := number("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
	run(b, clients, asks, b.N)
	b.StopTimer()
	b.ReportMetric(number("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")-before, "disk-B/token")
	for _, part := range []struct{ name, query string }{
		{"record-leaf", "SELECT sum(length(leaf)) FROM records"},
		{"record-hashes", "SELECT sum(length(hashes)) FROM records"},
		{"request", "SELECT sum(length(id) + length(body)) FROM requests"},
		{"carried", "SELECT coalesce(sum(length(lease)), 0) FROM requests"},
		{"lease", "SELECT coalesce(sum(length(id) + length(body)), 0) FROM leases"},
		{"live", "SELECT coalesce(sum(length(id) + 8 + length(request) + length(holder)), 0) FROM live"},
	} {
		b.ReportMetric(number(part.query), part.name+"-B/token")
	}
}
