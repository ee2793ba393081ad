module example.com/owner/lib

go 1.26
