package store

import (
	"fmt"
	"strconv"
	"strings"
)

// upsert returns the statement that writes a row of the table.
func (t table) upsert() string {
	columns := append([]string{"id", "body"}, tables[t].extra...)
	var sets []string
	for _, c := range columns[1:] {
		sets = append(sets, c+" = excluded."+c)
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s) ON CONFLICT (id) DO UPDATE SET %s", tables[t].name,
		strings.Join(columns, ", "), strings.TrimSuffix(strings.Repeat("?, ", len(columns)), ", "), strings.Join(sets, ", "))
}

// selectIn returns the query for rows of the table: their ids and bodies, and of a lease
// also the column lease (see leaseFrom). where is the condition on their ids.
func (t table) selectIn(where string) string {
	if t == leases {
		return leaseFrom(where)
	}
	return "SELECT id, body FROM " + tables[t].name + " WHERE " + where
}

// fetchIn is selectIn with the lease that a request carries.
func (t table) fetchIn(where string) string {
	if t == requests {
		return "SELECT id, body, lease FROM requests WHERE " + where
	}
	return t.selectIn(where)
}

// fetchesLease reports whether fetchIn selects the column lease.
func (t table) fetchesLease() bool { return t == requests || t == leases }

// idAmong returns the condition for n ids.
func idAmong(n int) string {
	in := "id IN (?1"
	for i := 2; i <= n; i++ {
		in += ",?" + strconv.Itoa(i)
	}
	return in + ")"
}
