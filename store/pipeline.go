package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A pipeline has the statements of a group until they are sent, with COMMIT, in one round
// trip. Rows that one text inserts, deletes or changes by its id are sent as one statement
// with arrays: no two of them have one key, and the order of different rows does not matter.
type pipeline struct {
	texts []*pipelined // in the order in which they were first added
	by    map[string]*pipelined
}

// A pipelined is a text with the arguments of each of its executions.
type pipelined struct {
	query string
	rows  [][]any
}

func (p *pipeline) add(query string, args []any) error {
	row := make([]any, len(args))
	for i, arg := range args {
		value, err := postgresValue(arg)
		if err != nil {
			return fmt.Errorf("binding parameter %d: %w", i+1, err)
		}
		if b, ok := value.([]byte); ok && b == nil {
			value = nil // NULL, as on SQLite
		}
		row[i] = value
	}
	if p.by == nil {
		p.by = map[string]*pipelined{}
	}
	one := p.by[query]
	if one == nil {
		one = &pipelined{query: query}
		p.by[query], p.texts = one, append(p.texts, one)
	}
	one.rows = append(one.rows, row)
	return nil
}

// send sends the statements and COMMIT.
func (p *pipeline) send(ctx context.Context, c *postgresConn, types columnTypes) error {
	b := &pgconn.Batch{}
	for _, s := range p.texts {
		if err := s.queue(ctx, b, c, types); err != nil {
			return err
		}
	}
	b.ExecParams("COMMIT", nil, nil, nil, nil)
	results := c.conn.PgConn().ExecBatch(ctx, b)
	var tag pgconn.CommandTag
	var first error
	for results.NextResult() {
		var err error
		if tag, err = results.ResultReader().Close(); err != nil && first == nil {
			first = err
		}
	}
	if err := results.Close(); first == nil {
		first = err
	}
	if first == nil && tag.String() != "COMMIT" {
		first = fmt.Errorf("COMMIT was answered with %q", tag.String())
	}
	return first
}

func (s *pipelined) queue(ctx context.Context, b *pgconn.Batch, c *postgresConn, types columnTypes) error {
	if len(s.rows) > 1 {
		if form := types.arrayForm(s.query); form != nil {
			return c.queue(ctx, b, form.text, form.values(s.rows))
		}
	}
	for _, row := range s.rows {
		if err := c.queue(ctx, b, translate(s.query), encodeArgs(row)); err != nil {
			return err
		}
	}
	return nil
}

// queue adds a query to a batch.
func (c *postgresConn) queue(ctx context.Context, b *pgconn.Batch, text string, v values) error {
	name, err := c.prepare(ctx, text, v.types)
	switch {
	case err != nil:
		return err
	case name != "":
		b.ExecPrepared(name, v.bytes, v.formats, binaryResults)
	default:
		b.ExecParams(text, v.bytes, v.types, v.formats, binaryResults)
	}
	return nil
}

// columnTypes are the types of the columns of a database, by "table.column".
type columnTypes map[string]uint32

// An arrayForm is a text that does with arrays what another text does once for each row.
type arrayForm struct {
	text     string
	elements []uint32 // types of the elements of each array
}

var (
	inserting = regexp.MustCompile(`(?s)^INSERT INTO (\w+) \(([\w, ]+)\) VALUES \(\?(?:, \?)*\)(.*)$`)
	byID      = regexp.MustCompile(`(?s)^((?:DELETE FROM|UPDATE) (\w+) .*WHERE id = )\?( AND \w+ IS NOT NULL)?$`)

	arrayForms sync.Map // by text: *arrayForm, nil for texts that have none
	typeNames  = map[uint32]string{pgtype.ByteaOID: "bytea[]", pgtype.TextOID: "text[]", pgtype.Int8OID: "bigint[]"}
	arrayTypes = map[uint32]uint32{pgtype.ByteaOID: pgtype.ByteaArrayOID, pgtype.TextOID: pgtype.TextArrayOID, pgtype.Int8OID: pgtype.Int8ArrayOID}
)

// arrayForm returns the form of a text with arrays; nil if it has none.
func (types columnTypes) arrayForm(query string) *arrayForm {
	if known, found := arrayForms.Load(query); found {
		return known.(*arrayForm)
	}
	form := types.newArrayForm(query)
	arrayForms.Store(query, form)
	return form
}

func (types columnTypes) newArrayForm(query string) *arrayForm {
	if m := byID.FindStringSubmatch(query); m != nil && strings.Count(query, "?") == 1 {
		element := types[m[2]+".id"]
		if typeNames[element] == "" {
			return nil
		}
		return &arrayForm{translate(m[1]) + "ANY($1::" + typeNames[element] + ")" + translate(m[3]), []uint32{element}}
	}
	m := inserting.FindStringSubmatch(query)
	if m == nil {
		return nil
	}
	form := &arrayForm{}
	var from []string
	for column := range strings.SplitSeq(m[2], ", ") {
		element := types[m[1]+"."+column]
		if typeNames[element] == "" {
			return nil
		}
		form.elements = append(form.elements, element)
		from = append(from, fmt.Sprintf("$%d::%s", len(form.elements), typeNames[element]))
	}
	form.text = "INSERT INTO " + m[1] + " (" + m[2] + ") SELECT * FROM unnest(" + strings.Join(from, ", ") + ")" + translate(m[3])
	return form
}

// values returns one array for each column of the rows.
func (f *arrayForm) values(rows [][]any) (v values) {
	for column, element := range f.elements {
		v.bytes = append(v.bytes, array(rows, column, element))
		v.types = append(v.types, arrayTypes[element])
		v.formats = append(v.formats, pgtype.BinaryFormatCode)
	}
	return v
}

const selectTypes = `SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = current_schema()`

// readTypes reads the types of the columns.
func readTypes(ctx context.Context, q queryer) (columnTypes, error) {
	oids := map[string]uint32{"bytea": pgtype.ByteaOID, "text": pgtype.TextOID, "bigint": pgtype.Int8OID}
	types := columnTypes{}
	err := each(ctx, q, selectTypes, nil, func(rows *sql.Rows) error {
		var table, column, name string
		err := rows.Scan(&table, &column, &name)
		types[table+"."+column] = oids[name]
		return err
	})
	return types, err
}

// array encodes one column of rows in the binary format of arrays: dimensions, whether there
// are NULLs, the type of the elements, their number, the first index, and each element
// after its length.
func array(rows [][]any, column int, element uint32) []byte {
	nulls := uint32(0)
	if slices.ContainsFunc(rows, func(row []any) bool { return row[column] == nil }) {
		nulls = 1
	}
	b := make([]byte, 0, 20+64*len(rows))
	for _, n := range []uint32{1, nulls, element, uint32(len(rows)), 1} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	for _, row := range rows {
		switch x := row[column].(type) {
		case []byte:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(x))), x...)
		case string:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(x))), x...)
		case int64:
			b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(b, 8), uint64(x))
		default:
			b = binary.BigEndian.AppendUint32(b, 0xffffffff) // NULL
		}
	}
	return b
}

// bytesArray returns ids as an array.
func bytesArray(ids []any) []byte {
	rows := make([][]any, len(ids))
	for i := range ids {
		rows[i] = ids[i : i+1]
	}
	return array(rows, 0, pgtype.ByteaOID)
}

// encodeArgs encodes the arguments of one execution.
func encodeArgs(row []any) values {
	named := make([]driver.NamedValue, len(row))
	for i := range row {
		named[i].Value = row[i]
	}
	return encodeValues(named)
}
